# BA-Net (ECCV 2022), tables 5 and 6: Mask R-CNN, 12 epochs, lr 0.01 for 8 images (4 GPUs x 2), a tenth after 8 and 11.
_base_ = ["mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", "_base_/attention.py"]
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
