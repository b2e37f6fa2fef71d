# BA-Net v2 (2024; it prints no detection table) by the recipe of BA-Net: Mask R-CNN, ResNet-101.
_base_ = "../ba_net_mask_rcnn.py"
model = dict(
    backbone=dict(
        backbone="resnet101", attention="ba_v2", init_cfg=dict(checkpoint="runs/resnet101-ba_v2-ba_net_v2/seed0/best.pt")
    )
)
