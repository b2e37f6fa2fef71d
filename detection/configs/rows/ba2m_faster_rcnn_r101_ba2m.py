# BA2M, table XIV: Faster R-CNN, ResNet-101, BA2M with R = 16 as on ImageNet (train.py attention=ba2m attention.stage.reduction=16).
_base_ = "../ba2m_faster_rcnn.py"
model = dict(
    backbone=dict(
        backbone="resnet101",
        attention=dict(stage=dict(_target_="attn.modules.ba2m.BA2M", reduction=16)),
        init_cfg=dict(checkpoint="runs/resnet101-ba2m-imagenet/seed0/best.pt"),
    )
)
