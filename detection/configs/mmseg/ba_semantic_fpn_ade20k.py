# MMSegmentation's semantic FPN on ADE20K (4 GPUs x 4 images, 160k steps) with BA-ResNet-50 in place of its ResNet-50.
_base_ = ["mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"]
custom_imports = dict(imports=["detection"], allow_failed_imports=False)
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="mmdet.AttentionBackbone",
        backbone="resnet50",
        attention="ba",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://"),
    ),
)
