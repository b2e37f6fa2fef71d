# BA2M, table XIV: Faster R-CNN, ResNet-101, no attention.
_base_ = "../ba2m_faster_rcnn.py"
model = dict(backbone=dict(backbone="resnet101"))
