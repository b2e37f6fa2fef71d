# BA-Net, tables 5 and 6: Mask R-CNN, ResNet-50, BA.
_base_ = "../ba_net_mask_rcnn.py"
model = dict(backbone=dict(attention="ba", init_cfg=dict(checkpoint="runs/resnet50-ba-ba_net_official/seed0/best.pt")))
