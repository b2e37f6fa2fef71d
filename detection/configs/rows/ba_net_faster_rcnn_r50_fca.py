# BA-Net, table 5: Faster R-CNN, ResNet-50, FcaNet.
_base_ = "../ba_net_faster_rcnn.py"
model = dict(backbone=dict(attention="fca", init_cfg=dict(checkpoint="runs/resnet50-fca-ba_net_fcanet/seed0/best.pt")))
