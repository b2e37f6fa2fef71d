# BA2M, table IV: Faster R-CNN with OHEM, ResNet-50.
_base_ = "../ba2m_voc_faster_rcnn.py"
model = dict(train_cfg=dict(rcnn=dict(sampler=dict(type="OHEMSampler"))))
