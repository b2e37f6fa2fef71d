# DCANet, table 3: RetinaNet, ResNet-50, DCA-SE as in the published detection code (one layer of size matching: train.py
# attention=dca_se attention.block.matching=1fc).
_base_ = "../dcanet_retinanet.py"
model = dict(
    backbone=dict(
        attention=dict(
            block=dict(
                _target_="attn.modules.dca.DCA",
                base=dict(_target_="attn.modules.se.SE", reduction=16, bias=True),
                matching="1fc",
            )
        ),
        init_cfg=dict(checkpoint="runs/resnet50-dca_se-imagenet/seed0/best.pt"),
    )
)
