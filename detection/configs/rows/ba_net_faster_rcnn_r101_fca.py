# BA-Net, table 5: Faster R-CNN, ResNet-101, FcaNet.
_base_ = "../ba_net_faster_rcnn.py"
model = dict(
    backbone=dict(
        backbone="resnet101", attention="fca", init_cfg=dict(checkpoint="runs/resnet101-fca-ba_net_fcanet/seed0/best.pt")
    )
)
