# BA2M, tables XV and XVI: Mask R-CNN, ResNet-50, no attention.
_base_ = "../ba2m_mask_rcnn.py"
