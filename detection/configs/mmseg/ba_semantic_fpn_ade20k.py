# Semantic FPN on ADE20K with BA-ResNet-50, by MMSegmentation's schedule for it (4 GPUs x 4 images, 160k steps).
# Written out, because MMEngine cannot inherit from the fork: it looks for a package of the old name (mmsegmentation).
custom_imports = dict(imports=["detection"], allow_failed_imports=False)
default_scope = "mmseg"
classes, size = 150, (512, 512)
norm = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=size,
    ),
    backbone=dict(
        type="mmdet.AttentionBackbone",
        backbone="resnet50",
        attention="ba",
        sync_bn=True,
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://"),
    ),
    neck=dict(type="FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4),
    decode_head=dict(
        type="FPNHead",
        in_channels=[256] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=classes,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

load, annotations = dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", reduce_zero_label=True)
train_pipeline = [
    load,
    annotations,
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [load, dict(type="Resize", scale=(2048, 512), keep_ratio=True), annotations, dict(type="PackSegInputs")]
ade = dict(type="ADE20KDataset", data_root="data/ade/ADEChallengeData2016")
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **ade, data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"), pipeline=train_pipeline
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **ade, data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"), pipeline=test_pipeline
    ),
)
val_evaluator = test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])

steps = 160000
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0005))
param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=steps, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=steps, val_interval=16000)
val_cfg, test_cfg = dict(type="ValLoop"), dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=16000),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")
)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
log_processor = dict(by_epoch=False)
