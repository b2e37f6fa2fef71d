# DCANet, table 3: Cascade R-CNN, ResNet-50, GC.
_base_ = "../dcanet_cascade_rcnn.py"
model = dict(backbone=dict(attention="gc", init_cfg=dict(checkpoint="runs/resnet50-gc-dcanet_resnet/seed0/best.pt")))
