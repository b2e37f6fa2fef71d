# BA-Net, tables 5 and 6: Mask R-CNN, ResNet-50, FcaNet.
_base_ = "../ba_net_mask_rcnn.py"
model = dict(backbone=dict(attention="fca", init_cfg=dict(checkpoint="runs/resnet50-fca-ba_net_fcanet/seed0/best.pt")))
