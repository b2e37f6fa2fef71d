# DCANet, table 3: RetinaNet, ResNet-50, DCA-SE with the two layers of size matching that the paper says
# (the published detection code has one: matching="1fc").
_base_ = "../dcanet_retinanet.py"
model = dict(
    backbone=dict(
        attention=dict(
            block=dict(
                _target_="attn.modules.dca.DCA",
                base=dict(_target_="attn.modules.se.SE", reduction=16, bias=True),
                unused=True,
            )
        ),
        init_cfg=dict(checkpoint="runs/resnet50-dca_se-unused_true-dcanet_resnet/seed0/best.pt"),
    )
)
