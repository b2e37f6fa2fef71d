# BA-Net, table 6: Mask R-CNN, ResNet-101, ECA.
_base_ = "../ba_net_mask_rcnn.py"
model = dict(
    backbone=dict(
        backbone="resnet101", attention="eca", init_cfg=dict(checkpoint="runs/resnet101-eca-ba_net_fcanet/seed0/best.pt")
    )
)
