# BA2M, tables XV and XVI: Mask R-CNN, ResNet-101, no attention.
_base_ = "../ba2m_mask_rcnn.py"
model = dict(backbone=dict(backbone="resnet101"))
