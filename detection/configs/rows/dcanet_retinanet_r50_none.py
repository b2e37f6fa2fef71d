# DCANet, table 3: RetinaNet, ResNet-50, no attention.
_base_ = "../dcanet_retinanet.py"
