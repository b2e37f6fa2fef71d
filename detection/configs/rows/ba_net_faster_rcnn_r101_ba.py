# BA-Net, table 5: Faster R-CNN, ResNet-101, BA.
_base_ = "../ba_net_faster_rcnn.py"
model = dict(
    backbone=dict(
        backbone="resnet101", attention="ba", init_cfg=dict(checkpoint="runs/resnet101-ba-ba_net_official/seed0/best.pt")
    )
)
