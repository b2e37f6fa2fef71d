"""`import attn.timm`: the pairings in timm's registry, and timm's own tools with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from commands import ROOT, patience
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import register_model
from timm.models._hub import save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

import attn
import attn.timm

SMALL = {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 40), "stem_width": 16}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_every_pairing_has_a_name() -> None:
    attentions = [name for name in attn.list_attentions() if name != "none"]
    expected = {f"{attention}_{backbone}" for attention in attentions for backbone in attn.list_backbones()}
    assert expected <= set(timm.list_models())
    assert {"ba_resnet50", "ba_v2_resnet50", "ba_vit_small_patch16_224"} <= set(timm.list_models("ba_*"))
    assert "none_resnet50" not in timm.list_models()


def test_nothing_of_timm_is_replaced() -> None:
    ours = set(timm.list_models(module="timm"))
    assert ours == set(attn.timm.default_cfgs)
    others = [module for name, module in sys.modules.items() if name.startswith(("timm.models.", "attn.backbones."))]
    assert len(others) > 50
    for module in others:
        assert ours.isdisjoint(vars(module)), module
    assert "eca_resnet33ts" not in ours
    assert timm.is_model("eca_resnet33ts")


@pytest.fixture
def taken() -> Iterator[str]:
    """A name in timm's registry that a pairing would have."""

    def se_resnet26() -> None:
        """Of another package."""

    register_model(se_resnet26)
    yield "se_resnet26"
    timm.models._registry._clear_model_entries("se_resnet26")
    del timm.models._registry._model_entrypoints["se_resnet26"]


def test_a_name_that_is_taken_is_refused(taken: str) -> None:
    with pytest.raises(ValueError, match=f"timm has a network named {taken}"):
        attn.timm.register("resnet26", "se")


def test_further_pairings() -> None:
    assert attn.timm.register("resnet26", "ba") == "ba_resnet26" == attn.timm.register("resnet26", "ba")
    assert timm.is_model("ba_resnet26")
    with pytest.raises(ValueError, match="unknown attention 'none'"):
        attn.timm.register("resnet26", "none")
    with pytest.raises(ValueError, match="without a tag"):
        attn.timm.register("resnet26.bt_in1k", "ba")


@pytest.mark.parametrize(
    ("backbone", "attention"), [("resnet50", "ba"), ("mobilenetv3_small_100", "eca"), ("cifar_resnet18", "se")]
)
def test_the_network_is_that_of_create_model(backbone: str, attention: str) -> None:
    torch.manual_seed(0)
    ours = attn.create_model(backbone, attention, 7, drop_rate=0.1)
    torch.manual_seed(0)
    theirs = timm.create_model(f"{attention}_{backbone}", num_classes=7, drop_rate=0.1)
    for (name, value), (other, same) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, same)
    assert theirs.drop_rate == 0.1


def test_options_of_timm_and_of_the_attention() -> None:
    model = timm.create_model(
        "se_resnet18", num_classes=0, in_chans=1, drop_path_rate=0.2, reduction=4, global_pool="max", **SMALL
    )
    assert model.layer1[0].se.fc1.weight.shape[:2] == (4, 16)
    assert model.layer4[0].drop_path.drop_prob == pytest.approx(0.2)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 40)
    maps = timm.create_model("ba_resnet18", features_only=True, out_indices=(1, 3), **SMALL)
    assert [tuple(each.shape) for each in maps(IMAGES)] == [(2, 16, 16, 16), (2, 32, 4, 4)]
    assert maps.feature_info.channels() == [16, 32]
    with pytest.raises(ValueError, match="attention=sasa"):
        timm.create_model("sasa_mobilenetv3_small_100")


def test_what_timm_says_of_the_images_stays_and_of_weights_goes() -> None:
    model = timm.create_model("ba_resnet18", **SMALL)
    plain = timm.get_pretrained_cfg("resnet18")
    assert model.default_cfg["architecture"] == "ba_resnet18"
    assert (model.default_cfg["mean"], model.default_cfg["classifier"]) == (plain.mean, "fc")
    assert resolve_data_config(model=model)["crop_pct"] == plain.crop_pct
    assert not {"url", "hf_hub_id", "tag", "license"} & set(model.default_cfg)
    assert not timm.is_model_pretrained("ba_resnet18")


def test_saved_and_loaded_by_timm(tmp_path: Path) -> None:
    model = timm.create_model("se_resnet18", num_classes=5, reduction=4, **SMALL).eval()
    save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))
    fewer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2).eval()
    assert torch.equal(fewer.forward_features(IMAGES), model.forward_features(IMAGES))
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    assert torch.equal(maps(IMAGES)[-1], model.forward_features(IMAGES))


def test_weights_of_the_backbone_lie_under_the_attention(tmp_path: Path) -> None:
    plain = timm.create_model("resnet18", **SMALL)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    # What timm's own scripts pass: a description of the images, without weights.
    overlay = {"file": str(tmp_path / "plain.pth")}
    model = timm.create_model("ba_resnet18", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_file_names_no_module_of_elsewhere(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("se_resnet18", **SMALL), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["attention"] = {"block": {"_target_": "antigravity.Attention"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="importing it may execute anything"):
        timm.create_model(f"local-dir:{tmp_path}")
    assert "antigravity" not in sys.modules


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real handwritten digits as a folder of images: 200 to learn from, 100 to validate on."""
    root = tmp_path_factory.mktemp("digits")
    found = load_digits()
    for i, (pixels, label) in enumerate(zip(found.images[:300], found.target[:300], strict=True)):
        folder = root / ("train" if i < 200 else "val") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).convert("RGB").resize((32, 32)).save(folder / f"{i}.png")
    return root


def test_an_epoch_by_timm(digits: Path) -> None:
    """The steps of timm's train.py, by the same functions of timm."""
    torch.manual_seed(0)
    model = timm.create_model("ba_resnet18", num_classes=10, drop_rate=0.0, **SMALL)
    optimizer = create_optimizer_v2(model, "adamw", lr=0.01, weight_decay=0.01)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=10)
    config = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    options = {"batch_size": 20, "num_workers": 0, "use_prefetcher": False, "device": torch.device("cpu")}
    loaders = [
        create_loader(
            create_dataset("", digits, split=split, is_training=split == "train"),
            is_training=split == "train",
            input_size=config["input_size"],
            mean=config["mean"],
            std=config["std"],
            no_aug=True,
            **options,
        )
        for split in ("train", "val")
    ]
    for epoch in range(10):
        scheduler.step(epoch)
        model.train()
        for images, labels in loaders[0]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        hits = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loaders[1])
    assert hits > 50  # of 100; chance is 10


@pytest.mark.slow
@pytest.mark.skipif("TIMM_TRAIN" not in os.environ, reason="TIMM_TRAIN=PATH names timm's train.py, which its wheel lacks")
def test_timm_s_own_train_script(digits: Path, tmp_path: Path) -> None:
    command = [sys.executable, os.environ["TIMM_TRAIN"], "--data-dir", str(digits), "--val-split", "val"]
    command += ["--device-modules", "attn.timm", "--model", "ba_resnet18", "--num-classes", "10", "--img-size", "32"]
    command += ["--epochs", "1", "--batch-size", "50", "--workers", "0", "--device", "cpu", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=patience(300), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.rglob("summary.csv"))
