# BA-Net, tables 5 and 6: Mask R-CNN, ResNet-50, SE without biases.
_base_ = "../ba_net_mask_rcnn.py"
model = dict(
    backbone=dict(
        attention=dict(block=dict(_target_="attn.modules.se.SE", reduction=16, bias=False)),
        init_cfg=dict(checkpoint="runs/resnet50-se-bias_false-ba_net_fcanet/seed0/best.pt"),
    )
)
