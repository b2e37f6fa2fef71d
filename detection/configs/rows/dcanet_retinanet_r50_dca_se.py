# DCANet, table 3: RetinaNet, ResNet-50, DCA-SE as in the published detection code (one layer of size
# matching).
_base_ = "../dcanet_retinanet.py"
model = dict(
    backbone=dict(
        attention=dict(
            block=dict(
                _target_="attn.modules.dca.DCA",
                base=dict(_target_="attn.modules.se.SE", reduction=16, bias=True),
                matching="1fc",
                unused=True,
            )
        ),
        init_cfg=dict(checkpoint="runs/resnet50-dca_se-matching_1fc-unused_true-dcanet_resnet/seed0/best.pt"),
    )
)
