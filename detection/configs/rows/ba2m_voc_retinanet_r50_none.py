# BA2M, table III: RetinaNet with focal loss, ResNet-50.
_base_ = "../ba2m_voc_retinanet.py"
