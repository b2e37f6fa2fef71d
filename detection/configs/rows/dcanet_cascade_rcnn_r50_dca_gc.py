# DCANet, table 3: Cascade R-CNN, ResNet-50, DCA-GC.
_base_ = "../dcanet_cascade_rcnn.py"
model = dict(backbone=dict(attention="dca_gc", init_cfg=dict(checkpoint="runs/resnet50-dca_gc-imagenet/seed0/best.pt")))
