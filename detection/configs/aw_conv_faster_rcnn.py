# AW-convolution (ICANN 2021), table 2: attention on the lateral and output convolutions of the pyramid, ResNet-101 as it is.
# The paper tells no recipe; this is MMDetection's own (12 epochs, lr 0.02 for 16 images).
_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "_base_/attention.py"]
model = dict(
    type="AttentionDetector",
    detector="FasterRCNN",
    backbone=dict(
        _delete_=True,
        type="AttentionBackbone",
        backbone="resnet101",
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://"),
    ),
    neck=dict(type="AttentionFPN", sync_bn=True),
)
