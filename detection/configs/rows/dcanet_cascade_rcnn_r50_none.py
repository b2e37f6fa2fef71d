# DCANet, table 3: Cascade R-CNN, ResNet-50, no attention.
_base_ = "../dcanet_cascade_rcnn.py"
