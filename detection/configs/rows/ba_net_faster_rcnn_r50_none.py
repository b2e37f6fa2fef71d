# BA-Net, table 5: Faster R-CNN, ResNet-50, no attention.
_base_ = "../ba_net_faster_rcnn.py"
