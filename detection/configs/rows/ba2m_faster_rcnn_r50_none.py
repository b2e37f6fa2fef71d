# BA2M, table XIV: Faster R-CNN, ResNet-50, no attention.
_base_ = "../ba2m_faster_rcnn.py"
