# AW-convolution, table 2: Faster R-CNN, ResNet-101, SE-FPN.
_base_ = "../aw_conv_faster_rcnn.py"
model = dict(neck=dict(attention="se"))
