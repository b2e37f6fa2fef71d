"""The backbone: features, channels, what is frozen, what norms do, what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import detection_fixtures
import pytest
import torch
from mmengine.model.utils import convert_sync_batchnorm
from timm.layers import BatchNormAct2d
from torch import nn

import attn
from attn.attention import Attention
from attn.errors import UserError
from detection import AttentionBackbone, AttentionDetector, AttentionFPN

pytest_plugins = [detection_fixtures.__name__]
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("attention", [None, "se", "ba", "dca_se", "aw", "ba2m"])
def test_features_are_those_of_create_model(attention: str | None) -> None:
    torch.manual_seed(0)
    backbone = AttentionBackbone("resnet18", attention).eval()
    model: Any = attn.create_model("resnet18", attention, num_classes=0).eval()
    model.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():
        maps, expected = backbone(IMAGES), model.forward_intermediates(IMAGES, [1, 2, 3, 4], intermediates_only=True)
    assert len(maps) == 4
    for found, wanted, channels, stride in zip(maps, expected, backbone.channels, backbone.strides, strict=True):
        assert found.shape == (2, channels, 64 // stride, 64 // stride)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_out_indices_choose_stages_and_later_ones_are_not_kept() -> None:
    backbone = AttentionBackbone("resnet18", "se", out_indices=(1, 2))
    assert (backbone.channels, backbone.strides) == ((128, 256), (8, 16))
    assert [m.shape[1] for m in backbone(IMAGES)] == [128, 256]
    names = {name.split(".")[0] for name, _ in backbone.model.named_parameters()}
    assert "layer3" in names
    assert "layer4" not in names


@pytest.mark.parametrize(("stages", "frozen"), [(-1, []), (0, ["conv1", "bn1"]), (1, ["conv1", "bn1", "layer1"])])
def test_frozen_stages_include_their_attention(stages: int, frozen: list[str]) -> None:
    backbone = AttentionBackbone("resnet18", "ba", frozen_stages=stages).train()
    for name, parameter in backbone.model.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] not in frozen), name
    for name, module in backbone.model.named_modules():
        if name.startswith(("conv", "bn", "layer")):
            assert module.training == (name.split(".")[0] not in frozen), name
    assert any(name.startswith("layer1") and ".se." in name for name, _ in backbone.model.named_parameters())


def test_all_stages_can_be_frozen() -> None:
    backbone = AttentionBackbone("resnet18", "ba", frozen_stages=4).train()
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_step_changes_what_it_should_and_nothing_frozen() -> None:
    torch.manual_seed(0)
    backbone = AttentionBackbone("resnet18", "ba", frozen_stages=1, norm_eval=True, zero_init_last=False).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    sum(m.pow(2).mean() for m in backbone(IMAGES)).backward()
    optimizer.step()
    for name, value in backbone.state_dict().items():
        frozen = name.split(".")[1] in ("conv1", "bn1", "layer1")
        still = frozen or not dict(backbone.named_parameters()).get(name, torch.empty(0)).requires_grad
        assert torch.equal(value, before[name]) == still, name


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_reaches_the_norms_of_attentions(norm_eval: bool) -> None:
    backbone = AttentionBackbone("resnet18", "ba", norm_eval=norm_eval, zero_init_last=False).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert any(isinstance(m, nn.BatchNorm1d) for m in norms)
    assert all(m.training != norm_eval for m in norms)
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(IMAGES)
    changed = {k for k, v in backbone.state_dict().items() if "running" in k and not torch.equal(v, before[k])}
    assert changed == (set() if norm_eval else set(before))
    assert all(not m.training for m in backbone.eval().modules())


def test_one_image_per_rank_trains_with_norm_eval() -> None:
    maps = AttentionBackbone("resnet18", "ba", frozen_stages=1, norm_eval=True).train()(IMAGES[:1])
    sum(m.mean() for m in maps).backward()


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain = AttentionBackbone("resnet18", "ba").train()
    saving = AttentionBackbone("resnet18", "ba", with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    for backbone in (plain, saving):
        backbone(IMAGES)[-1].mean().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_every_parameter_gets_a_gradient() -> None:
    backbone = AttentionBackbone("resnet18", "ba").train()
    sum(m.mean() for m in backbone(IMAGES)).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_survives_copying() -> None:
    backbone = AttentionBackbone("resnet18", "ba", frozen_stages=1).eval()
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        torch.testing.assert_close(other(IMAGES)[-1], backbone(IMAGES)[-1], rtol=0, atol=0)


def test_initialisation_is_left_to_timm_and_the_attentions() -> None:
    backbone = AttentionBackbone("resnet18", "ba")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_sync_bn_of_the_config_is_refused_where_it_would_drop_activations() -> None:
    backbone = AttentionBackbone("resnet18")
    convert_sync_batchnorm(copy.deepcopy(backbone)).train()  # plain norms convert well
    backbone.model.bn1 = BatchNormAct2d(64)
    backbone._fused = backbone._count_fused()
    with pytest.raises(UserError, match=r"model.backbone.sync_bn=True"):
        convert_sync_batchnorm(backbone).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet5O"}, "did you mean"),
        ({"attention": "sse"}, "did you mean 'se'"),
        ({"out_indices": (0, 4)}, r"out_indices=\[0, 4\]: choose from 0 to 3"),
        ({"out_indices": ()}, "out_indices"),
        ({"frozen_stages": 5}, r"frozen_stages=\[5\]: choose from -1 to 4"),
        ({"pretrained": True}, "timm://resnet50"),
        ({"init_cfg": {"type": "Kaiming"}}, "Pretrained"),
        ({"no_such_option": 1}, "unknown option 'no_such_option'"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionBackbone(**settings)


def test_the_neck_gets_its_channels_from_the_backbone(build: Any) -> None:
    from mmdet.models.detectors import FasterRCNN

    model, _ = build("digits_faster_rcnn", {"model.backbone.out_indices": [1, 2, 3], "model.neck.num_outs": 4})
    assert isinstance(model, FasterRCNN)
    assert model.neck.in_channels == [128, 256, 512]
    model, _ = build("digits_faster_rcnn", {"model.backbone.backbone": "resnet50"})
    assert model.neck.in_channels == [256, 512, 1024, 2048]


def test_a_list_of_necks_gets_its_first_channels(build: Any) -> None:
    _, cfg = build("digits_faster_rcnn")
    second = {"type": "BFP", "in_channels": 64, "num_levels": 5}
    model = AttentionDetector(**{**{k: v for k, v in cfg.model.items() if k != "type"}, "neck": [cfg.model.neck, second]})
    assert model.neck[0].in_channels == [64, 128, 256, 512]
    assert model.neck[1].in_channels == 64


@pytest.mark.parametrize("attention", ["aw", "se", "aw_se", "cbam", "aw_cbam"])
def test_fpn_with_attention(attention: str) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"in_channels": [64, 128], "out_channels": 32, "num_outs": 3}
    fpn, plain = AttentionFPN(attention=attention, **settings), AttentionFPN(**settings)
    names = set(plain.state_dict())
    assert names < set(fpn.state_dict())
    kept = {k: v.clone() for k, v in fpn.state_dict().items() if k not in names}
    fpn.init_weights()
    assert all(torch.equal(fpn.state_dict()[k], v) for k, v in kept.items()), "attentions keep their own initialisation"
    maps = (torch.randn(2, 64, 16, 16), torch.randn(2, 128, 8, 8))
    out = fpn.train()(maps)
    assert [m.shape for m in out] == [(2, 32, 16, 16), (2, 32, 8, 8), (2, 32, 4, 4)]
    sum(m.pow(2).sum() for m in out).backward()
    assert all(p.grad is not None for p in fpn.parameters())


def test_fpn_without_attention_is_mmdetections() -> None:
    from mmdet.models.necks import FPN

    torch.manual_seed(0)
    plain = FPN([64, 128], 32, num_outs=2)
    ours = AttentionFPN([64, 128], out_channels=32, num_outs=2)
    ours.load_state_dict(plain.state_dict())
    maps = (torch.randn(1, 64, 8, 8), torch.randn(1, 128, 4, 4))
    for a, b in zip(plain(maps), ours(maps), strict=True):
        assert torch.equal(a, b)


def test_attentions_are_where_they_should_be(build: Any) -> None:
    model, _ = build("digits_faster_rcnn", {"model.backbone.attention": "se"})
    assert sum(isinstance(m, Attention) for m in model.backbone.modules()) == 8
    model, _ = build("digits_faster_rcnn", {"model.backbone.attention.block._target_": "attn.modules.se.SE"})
    assert sum(isinstance(m, Attention) for m in model.backbone.modules()) == 8
