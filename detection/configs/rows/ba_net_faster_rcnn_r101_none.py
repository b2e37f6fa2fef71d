# BA-Net, table 5: Faster R-CNN, ResNet-101, no attention.
_base_ = "../ba_net_faster_rcnn.py"
model = dict(backbone=dict(backbone="resnet101"))
