# BA2M, table IV: Faster R-CNN, ResNet-50.
_base_ = "../ba2m_voc_faster_rcnn.py"
