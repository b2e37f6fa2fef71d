# BA-Net, table 6: Mask R-CNN, ResNet-101, SE without biases.
_base_ = "../ba_net_mask_rcnn.py"
model = dict(
    backbone=dict(
        backbone="resnet101",
        attention=dict(block=dict(_target_="attn.modules.se.SE", reduction=16, bias=False)),
        init_cfg=dict(checkpoint="runs/resnet101-se-bias_false-ba_net_fcanet/seed0/best.pt"),
    )
)
