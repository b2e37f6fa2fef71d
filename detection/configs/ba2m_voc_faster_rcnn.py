# BA2M (2021), table IV: Faster R-CNN on VOC 07+12 trainval, tested on VOC 07. The paper tells no recipe; this is
# MMDetection's own (4 epochs x 3 repeats, lr 0.01 for 16 images, 1000 x 600). OHEM:
# model.train_cfg.rcnn.sampler.type=OHEMSampler
_base_ = ["mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py", "_base_/attention.py"]
model = dict(
    type="AttentionDetector",
    detector="FasterRCNN",
    backbone=dict(
        _delete_=True,
        type="AttentionBackbone",
        backbone="resnet50",
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://"),
    ),
)
val_evaluator = dict(type="VOCRecallMetric")  # and the paper's Recall
test_evaluator = dict(type="VOCRecallMetric")
