# BA2M, tables XV and XVI: Mask R-CNN, ResNet-50, BA2M with R = 16 as on ImageNet.
_base_ = "../ba2m_mask_rcnn.py"
model = dict(
    backbone=dict(
        attention=dict(stage=dict(_target_="attn.modules.ba2m.BA2M", variant="fitted", reduction=16)),
        init_cfg=dict(checkpoint="runs/resnet50-ba2m-variant_fitted-reduction_16-ba2m_imagenet/seed0/best.pt"),
    )
)
