# MMPretrain's ResNet-50 on ImageNet (8 GPUs x 32 images, 100 epochs) with bridge attention.
_base_ = ["mmpretrain::resnet/resnet50_8xb32_in1k.py"]
custom_imports = dict(imports=["detection"], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type="mmdet.AttentionBackbone", backbone="resnet50", attention="ba", out_indices=[3], init_cfg=None
    ),
)
