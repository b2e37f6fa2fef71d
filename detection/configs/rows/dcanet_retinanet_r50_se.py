# DCANet, table 3: RetinaNet, ResNet-50, SE.
_base_ = "../dcanet_retinanet.py"
model = dict(backbone=dict(attention="se", init_cfg=dict(checkpoint="runs/resnet50-se-dcanet_resnet/seed0/best.pt")))
