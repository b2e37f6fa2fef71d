# BA2M, table III: RetinaNet, ResNet-50, BA2M, softmax loss in place of focal loss. The paper says no more. Cross entropy
# over all anchors, divided by the positives as focal loss is, diverges: one anchor in a thousand is positive. So 256 anchors
# per image are sampled, at most half of them positive, as in the RPN, which learns by cross entropy, too.
_base_ = "../ba2m_voc_retinanet.py"
model = dict(
    backbone=dict(
        attention=dict(stage=dict(_target_="attn.modules.ba2m.BA2M", variant="fitted", reduction=16)),
        init_cfg=dict(checkpoint="runs/resnet50-ba2m-variant_fitted-reduction_16-ba2m_imagenet/seed0/best.pt"),
    ),
    bbox_head=dict(loss_cls=dict(_delete_=True, type="CrossEntropyLoss", use_sigmoid=False)),
    train_cfg=dict(
        sampler=dict(
            _delete_=True, type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False
        )
    ),
)
