# BA-Net, table 6: Mask R-CNN, ResNet-101, no attention.
_base_ = "../ba_net_mask_rcnn.py"
model = dict(backbone=dict(backbone="resnet101"))
