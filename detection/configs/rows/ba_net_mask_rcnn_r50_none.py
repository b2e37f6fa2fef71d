# BA-Net, tables 5 and 6: Mask R-CNN, ResNet-50, no attention.
_base_ = "../ba_net_mask_rcnn.py"
