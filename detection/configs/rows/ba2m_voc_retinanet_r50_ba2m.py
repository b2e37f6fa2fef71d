# BA2M, table III: RetinaNet, ResNet-50, BA2M, softmax loss in place of focal loss.
_base_ = "../ba2m_voc_retinanet.py"
model = dict(
    backbone=dict(
        attention=dict(stage=dict(_target_="attn.modules.ba2m.BA2M", variant="fitted", reduction=16)),
        init_cfg=dict(checkpoint="runs/resnet50-ba2m-variant_fitted-reduction_16-ba2m_imagenet/seed0/best.pt"),
    ),
    bbox_head=dict(loss_cls=dict(_delete_=True, type="CrossEntropyLoss", use_sigmoid=False)),
)
