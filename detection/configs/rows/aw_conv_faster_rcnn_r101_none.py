# AW-convolution, table 2: Faster R-CNN, ResNet-101, plain FPN.
_base_ = "../aw_conv_faster_rcnn.py"
