# BA2M (2021), tables XV and XVI: Mask R-CNN, 24 epochs, lr 0.01 (8 images by MMDetection's rule; the paper does not tell), a
# tenth after 16 and 22. BA2M acts in training alone, and not in the frozen stage.
_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py", "_base_/attention.py"]
model = dict(
    type="AttentionDetector",
    detector="MaskRCNN",
    backbone=dict(
        _delete_=True,
        type="AttentionBackbone",
        backbone="resnet50",
        frozen_stages=1,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://"),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
