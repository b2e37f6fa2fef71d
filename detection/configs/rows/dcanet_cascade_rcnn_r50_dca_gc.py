# DCANet, table 3: Cascade R-CNN, ResNet-50, DCA-GC.
_base_ = "../dcanet_cascade_rcnn.py"
model = dict(
    backbone=dict(
        attention=dict(
            block=dict(
                _target_="attn.modules.dca_gc.DCAGC", base=dict(_target_="attn.modules.gc.GC", reduction=16), unused=True
            )
        ),
        init_cfg=dict(checkpoint="runs/resnet50-dca_gc-unused_true-dcanet_resnet/seed0/best.pt"),
    )
)
