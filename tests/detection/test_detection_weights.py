"""Checkpoints: those of train.py load, others are refused, nothing in them is executed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import detection_fixtures
import pytest
import torch
from safetensors.torch import save_file

import attn
from attn.errors import UserError
from attn.runs import checkpoint
from attn.runs.checkpoint import BadCheckpoint
from detection import AttentionBackbone, weights
from detection.weights import check_present

pytest_plugins = [detection_fixtures.__name__]


class Payload:
    """What an attacker would put into a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def classifier(folder: Path, attention: str | None = "ba", ema: bool = True, backbone: str = "resnet18") -> tuple[Path, Any]:
    """A checkpoint as train.py writes it, and its content."""
    model = attn.create_model(backbone, attention, num_classes=10)
    averaged = {name: value + 1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    content = {"format": checkpoint.FORMAT, "model": model.state_dict(), "ema": averaged if ema else None, "config": {}}
    folder.mkdir(exist_ok=True)
    checkpoint.save(content, folder, best=False)
    return folder / checkpoint.LAST, content


def initialised(path: Path | str, attention: Any = "ba", frozen_stages: int = 1, **options: Any) -> AttentionBackbone:
    settings = {"type": "Pretrained", "checkpoint": str(path), **options}
    backbone = AttentionBackbone("resnet18", attention, frozen_stages=frozen_stages, init_cfg=settings)
    backbone.init_weights()
    return backbone


@pytest.mark.parametrize(("ema", "source"), [(None, "ema"), (True, "ema"), (False, "model")])
def test_checkpoint_of_train_loads_averaged_or_raw(tmp_path: Path, ema: bool | None, source: str) -> None:
    path, content = classifier(tmp_path)
    backbone = initialised(path, ema=ema)
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, content[source][name]), name


def test_checkpoint_without_average_loads_raw_weights_and_refuses_to_average(tmp_path: Path) -> None:
    path, content = classifier(tmp_path, ema=False)
    assert torch.equal(initialised(path).model.conv1.weight, content["model"]["conv1.weight"])
    with pytest.raises(BadCheckpoint, match="no averaged weights"):
        initialised(path, ema=True)


def test_a_folder_of_save_pretrained_loads(tmp_path: Path) -> None:
    weights = attn.create_model("resnet18", "ba", num_classes=10).state_dict()
    save_file({name: value.clone() for name, value in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"attn": {"format": 1, "weights": "ema", "config": {}}}))
    assert torch.equal(initialised(tmp_path, ema=True).model.conv1.weight, weights["conv1.weight"])
    with pytest.raises(BadCheckpoint, match="has no raw weights"):
        initialised(tmp_path, ema=False)
    check_present("hf-hub:me/ba_resnet18")  # what the Hub lacks is told when it is fetched


def test_stages_that_are_not_used_may_be_in_the_checkpoint(tmp_path: Path) -> None:
    path, content = classifier(tmp_path)
    settings = {"type": "Pretrained", "checkpoint": str(path)}
    backbone = AttentionBackbone("resnet18", "ba", out_indices=(0, 1), init_cfg=settings)
    backbone.init_weights()
    assert torch.equal(backbone.model.conv1.weight, content["ema"]["conv1.weight"])


@pytest.mark.parametrize(
    ("trained", "wanted", "backbone", "kind"),
    [
        ("se", "ba", "resnet18", "unexpected"),
        ("ba", None, "resnet18", "unexpected"),
        ("ba", "ba", "resnet34", "unexpected"),
        ("ba", "ba", "resnet50", "of another shape"),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, trained: str, wanted: str | None, backbone: str, kind: str) -> None:
    path, _ = classifier(tmp_path, trained, backbone=backbone)
    with pytest.raises(BadCheckpoint, match=rf"of another backbone or attention: keys .*\d+ {kind} \(") as caught:
        initialised(path, wanted)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_weights_start_an_attention_only_where_it_is_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, content = classifier(tmp_path, None)
    backbone = initialised(path, "ba", frozen_stages=-1)
    assert torch.equal(backbone.model.conv1.weight, content["ema"]["conv1.weight"])
    with pytest.raises(UserError, match=r"lacks \d+ parameters of the frozen stages \(layer1.0.se.*frozen_stages=-1"):
        initialised(path, "ba", frozen_stages=1)


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "bad.pth"
    torch.save({"model": {}, "config": {}, "state_dict": {}, "x": Payload(marker)}, path)
    with pytest.raises(BadCheckpoint, match="refused, nothing was executed"):
        initialised(path)
    with pytest.raises(BadCheckpoint, match="refused, nothing was executed"):
        weights.read_detector(path)
    assert not marker.exists()


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    path, _ = classifier(tmp_path)
    with pytest.raises(BadCheckpoint, match="no such file"):
        initialised(tmp_path / "none.pt")
    with pytest.raises(BadCheckpoint, match="no such file"):
        weights.read_detector(tmp_path / "none.pth")
    with pytest.raises(BadCheckpoint, match="is a folder"):
        weights.read_detector(tmp_path)
    with pytest.raises(BadCheckpoint, match=r"is a classifier of train.py: give it as model.backbone.init_cfg.checkpoint"):
        weights.read_detector(path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(BadCheckpoint, match="no weights of a detector"):
        weights.read_detector(tmp_path / "list.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadCheckpoint, match="truncated"):
        initialised(path)
    with pytest.raises(BadCheckpoint, match="truncated"):
        weights.read_detector(path)


@pytest.mark.parametrize("name", ["timm://resnet18.no_such_tag", "torchvision://resnet10t", "timm://nonsense"])
def test_weights_that_timm_does_not_have_are_refused_before_any_download(name: str) -> None:
    with pytest.raises(UserError, match="timm has no weights"):
        initialised(name)


def test_weights_of_timm_load_but_for_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    source = attn.create_model("resnet18")
    monkeypatch.setattr(weights, "_timm_weights", lambda checkpoint, backbone: source.state_dict())
    backbone = initialised("timm://", "ba", frozen_stages=-1)
    own = backbone.model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in source.state_dict().items() if not k.startswith("fc."))


def test_a_detectors_weights_must_be_the_detectors(build: Any) -> None:
    model, _ = build("digits_faster_rcnn")
    content = {"state_dict": model.state_dict()}
    weights.check_detector(model, content, "x.pth", whole=True)
    # Fine-tuning: another number of classes is fine unless the whole must fit.
    other, _ = build("digits_faster_rcnn", {"model.roi_head.bbox_head.num_classes": 3})
    weights.check_detector(other, content, "x.pth", whole=False)
    with pytest.raises(BadCheckpoint, match=r"of another detector than the config: keys 4 of another shape \(roi_head"):
        weights.check_detector(other, content, "x.pth", whole=True)
    attended, _ = build("digits_faster_rcnn", {"model.backbone.attention": "se"})
    with pytest.raises(BadCheckpoint, match=r"keys \d+ missing \(backbone.model.layer1.0.se"):
        weights.check_detector(attended, content, "x.pth", whole=False)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda w: w * float("nan"), "conv1.weight is not finite"), (lambda w: (w * 10).long(), "1 of another type")],
)
def test_weights_are_checked_for_type_and_finiteness(tmp_path: Path, spoil: Any, said: str) -> None:
    path, content = classifier(tmp_path, ema=False)
    content["model"]["conv1.weight"] = spoil(content["model"]["conv1.weight"])
    checkpoint.save(content, tmp_path, best=False)
    with pytest.raises(BadCheckpoint, match=said):
        initialised(path)
    model = attn.create_model("resnet18")
    state = model.state_dict() | {"conv1.weight": spoil(model.conv1.weight.detach())}
    torch.save({"state_dict": state}, tmp_path / "detector.pth")
    with pytest.raises(BadCheckpoint, match=said):
        weights.check_detector(model, weights.read_detector(tmp_path / "detector.pth"), "detector.pth", whole=True)
