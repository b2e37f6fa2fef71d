# FcaNet by the recipe of BA-Net (table 6 lacks the row): Mask R-CNN, ResNet-101.
_base_ = "../ba_net_mask_rcnn.py"
model = dict(
    backbone=dict(
        backbone="resnet101", attention="fca", init_cfg=dict(checkpoint="runs/resnet101-fca-ba_net_fcanet/seed0/best.pt")
    )
)
