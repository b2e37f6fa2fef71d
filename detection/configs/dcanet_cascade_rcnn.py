# DCANet (2020), table 3: Cascade R-CNN, 24 epochs, lr 0.02 for 16 images (8 GPUs x 2), a tenth after 18 and 22 (the
# published configs: after 16 and 22, and optim_wrapper.clip_grad with max_norm=35 and norm_type=2).
_base_ = ["mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py", "_base_/attention.py"]
model = dict(
    type="AttentionDetector",
    detector="CascadeRCNN",
    backbone=dict(
        _delete_=True,
        type="AttentionBackbone",
        backbone="resnet50",
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://"),
    ),
)
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=24, by_epoch=True, milestones=[18, 22], gamma=0.1),
]
