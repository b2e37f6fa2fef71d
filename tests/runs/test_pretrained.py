"""A model as a folder: written, loaded again by this package, by timm, transformers and torch.hub, without a network."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from commands import ROOT, TINY, Command, composed
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import attn
import attn.timm
from attn.analysis.subjects import load_subjects
from attn.config import parse
from attn.config.schema import Config
from attn.distributed import Ranks
from attn.errors import UserError
from attn.runs import checkpoint, directory, load, metrics
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.folder import beside
from attn.training import setup

OVERRIDES = [*TINY, "attention=se", "attention_name=se", "attention.block.reduction=4", "schedule.epochs=2"]
OVERRIDES += ["+backbone.channels=[16,16,24,24]", "+backbone.stem_width=16"]
SCORES = [70.0, 90.0, 80.0]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of three runs that differ in the seed, as train.py leaves them."""
    top = tmp_path_factory.mktemp("runs") / "resnet10t-se-digits"
    for seed, top1 in enumerate(SCORES):
        cfg = replace(composed(*OVERRIDES), seed=seed)
        folder = top / f"seed{seed}"
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        model, averaged = load.build(cfg), load.build(cfg)
        rows = [
            {"epoch": epoch, "val_loss": 0.5, "val_top1": top1 - 20, "ema_val_top1": top1 - 2 + epoch, "ema_val_loss": 0.25}
            for epoch in (1, 2)
        ]
        content: dict[str, Any] = {"format": 1, "model": model.state_dict(), "ema": averaged.state_dict(), "step": 46}
        content |= {
            "evaluated": 2,
            "best": {"top1": top1, "epoch": 2},
            "classes": [str(i) for i in range(10)],
            "history": rows,
        }
        content |= {"config": parse.to_dict(cfg), "versions": checkpoint.versions()}
        checkpoint.write(content, folder / "best.pt")
        metrics.append_metrics(folder, rows)
        directory.write_config(folder, cfg)
        (folder / directory.DONE).touch()
    return top


@pytest.fixture(scope="module")
def saved(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attn.save_pretrained(runs / "seed0", tmp_path_factory.mktemp("saved") / "model")


@torch.inference_mode()
def logits(model: torch.nn.Module) -> Tensor:
    return model.eval()(IMAGES)


def test_the_round_trip(runs: Path, saved: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    expected = logits(attn.load(runs / "seed0" / "best.pt"))
    loaded = attn.load(saved)
    assert not loaded.training
    assert torch.equal(logits(loaded), expected)
    raw = attn.save_pretrained(runs / "seed0" / "best.pt", tmp_path / "raw", ema=False)
    assert torch.equal(logits(attn.load(raw)), logits(attn.load(runs / "seed0" / "best.pt", ema=False)))
    assert not torch.equal(logits(attn.load(raw)), expected)


def test_eval_takes_the_folder(saved: Path, tmp_path: Path, in_process: Command) -> None:
    folder = shutil.copytree(saved, tmp_path / "model.v1")
    done = in_process(["eval.py", f"checkpoint={folder}"])
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "eval-model.v1.json").read_text())
    assert 0 <= scores["top1"] <= 100
    assert scores["weights"] == "ema"
    refused = in_process(["eval.py", f"checkpoint={folder}", "weights=raw"])
    assert refused.returncode == 2
    assert f"{folder} has no raw weights: attn.save_pretrained wrote the averaged ones" in refused.stderr


def test_predictions_and_figures_take_the_folder(runs: Path, saved: Path) -> None:
    file = runs / "seed0" / "best.pt"
    image = Image.new("RGB", (32, 32), (200, 50, 50))
    assert list(attn.predict(saved, image, device="cpu")) == list(attn.predict(file, image, device="cpu"))
    first, second = load_subjects([str(file), str(saved)])
    assert torch.equal(logits(first.model), logits(second.model))
    assert first.name != second.name


def test_an_exported_file_lies_beside_the_folder(saved: Path, tmp_path: Path, in_process: Command) -> None:
    folder = shutil.copytree(saved, tmp_path / "model.v1")
    command = ["scripts/export.py", f"checkpoint={folder}", "format=pt2"]
    (folder / "model.safetensors").unlink()
    assert f"{folder} cannot be read (incomplete" in in_process(command).stderr
    (tmp_path / "model.v1.pt2").touch()
    assert f"{folder}.pt2 exists" in in_process(command).stderr


def test_where_files_made_of_a_model_go(tmp_path: Path) -> None:
    assert beside("runs/a/best.pt") == Path("runs/a/best")
    assert beside(tmp_path / "..") == tmp_path / ".."
    assert beside("hf-hub:me/ba_resnet50@v1.0") == Path("me-ba_resnet50@v1.0")


def starts(cfg: Config, init: str | Path) -> dict[str, Tensor]:
    """The weights with which a run of `init=` begins."""
    return setup.build_model(replace(cfg, init=str(init)), Ranks(0, 1, torch.device("cpu")), fresh=True).state_dict()


def test_a_run_starts_from_a_file_or_a_folder(runs: Path, saved: Path, tmp_path: Path) -> None:
    cfg = composed(*OVERRIDES)
    file = runs / "seed0" / "best.pt"
    for source in (file, saved):
        found = starts(cfg, source)
        assert all(torch.equal(found[name], value) for name, value in attn.load(file).state_dict().items())
    with pytest.raises(BadCheckpoint, match=r"of another architecture: keys 2 of another shape \(fc.weight, fc.bias\)"):
        starts(composed(*OVERRIDES, "data.num_classes=12"), saved)
    with pytest.raises(BadCheckpoint, match="no such file"):
        starts(cfg, tmp_path / "none")


def test_train_takes_the_folder(saved: Path, train: Command) -> None:
    done = train(*OVERRIDES, f"init={saved}", "schedule.epochs=1")
    assert f"starting from the weights of {saved}" in done.stdout


def test_the_card_tells_config_metrics_spread_and_citation(saved: Path) -> None:
    text = (saved / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["tags"][:3] == ["attn", "channel-attention", "se"]
    (result,) = found["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"top1": 70.0, "loss": 0.25}
    assert "| top1 | 70 | % |" in body
    assert "Best top1 over 3 seeds: 80.00 ± 10.00 (standard deviation); seed 0 70.00, seed 1 90.00, seed 2 80.00." in body
    assert "Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018." in body
    config = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert config["attention"]["block"]["reduction"] == 4
    assert parse.from_dict(config).schedule.epochs == 2


def test_one_run_has_no_spread(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "seed1", tmp_path / "alone" / "seed1")
    attn.save_pretrained(tmp_path / "alone" / "seed1", tmp_path / "model")
    assert "One run: there is no spread over seeds." in (tmp_path / "model" / "README.md").read_text()


@pytest.fixture
def registered() -> None:
    """As the card says, of a backbone without a config here."""
    attn.timm.register("resnet10t", "se")


@pytest.mark.usefixtures("registered")
def test_timm_builds_it(saved: Path) -> None:
    assert 'attn.timm.register("resnet10t", "se")' in (saved / "README.md").read_text()
    model = timm.create_model(f"local-dir:{saved}", pretrained=True)
    assert torch.equal(logits(model), logits(attn.load(saved)))
    data = timm.data.resolve_data_config(model=model)
    assert (tuple(data["input_size"]), data["crop_pct"]) == ((3, 32, 32), 1.0)


@pytest.mark.usefixtures("registered")
def test_transformers_builds_it(saved: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model = transformers.TimmWrapperForImageClassification.from_pretrained(saved)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(IMAGES).logits, logits(attn.load(saved)))
    assert model.config.id2label[3] == "3"


def test_torch_hub_builds_pairings_and_loads_files(saved: Path) -> None:
    assert torch.hub.load(str(ROOT), "create_model", "resnet18", None, 2, source="local").num_classes == 2
    model = torch.hub.load(str(ROOT), "se_resnet18", source="local", num_classes=3, reduction=8)
    assert list(model.state_dict()) == list(attn.create_model("resnet18", "se", 3, reduction=8).state_dict())
    assert model.num_classes == 3
    loaded = torch.hub.load(str(ROOT), "load_checkpoint", saved, source="local")
    assert torch.equal(logits(loaded), logits(attn.load(saved)))


class LocalHub:
    """What `push_to_hub` asks of `huggingface_hub.HfApi`, on a folder in the layout of the Hub's own cache."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.repo = self.cache / f"models--{repo.replace('/', '--')}"
        (self.repo / "refs").mkdir(parents=True)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
        assert commit_message
        (self.repo / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder_path, self.repo / "snapshots" / ("0" * 40))
        return f"hub/{repo_id}"


def test_pushed_and_loaded_by_name(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert attn.push_to_hub(runs / "seed0", "me/se_digits", api=LocalHub(tmp_path)) == "hub/me/se_digits"
    expected = logits(attn.load(runs / "seed0" / "best.pt"))
    for name in ("hf-hub:me/se_digits", "hf-hub:me/se_digits@main"):
        assert torch.equal(logits(attn.load(name)), expected)
        assert torch.equal(starts(composed(*OVERRIDES), name)["fc.weight"], attn.load(name).get_classifier().weight)
    with pytest.raises(UserError, match="hf-hub:me/other cannot be loaded"):
        attn.load("hf-hub:me/other")
    with pytest.raises(UserError, match="must be organisation/name"):
        attn.push_to_hub(runs / "seed0", "se_digits")


def test_nothing_is_replaced(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    attn.save_pretrained(runs / "seed0", tmp_path / "model")  # an empty folder is fine
    with pytest.raises(UserError, match="exists: remove it"):
        attn.save_pretrained(runs / "seed0", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(BadCheckpoint, match="no such file"):
        attn.save_pretrained(tmp_path / "none.pt", tmp_path / "other")


class Unreachable(Exception):
    """What an HTTP client raises: no OSError."""


class Offline:
    def create_repo(self, *arguments: object, **options: object) -> None:
        raise Unreachable("name not known")


def test_a_hub_that_cannot_be_reached_is_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="me/ba cannot be uploaded: name not known"):
        attn.push_to_hub(runs / "seed0", "me/ba", api=Offline())
    monkeypatch.setattr("huggingface_hub.snapshot_download", Offline().create_repo)
    with pytest.raises(UserError, match="hf-hub:me/ba cannot be loaded: name not known"):
        attn.load("hf-hub:me/ba")


def test_what_is_no_path_or_name_is_refused(runs: Path, tmp_path: Path) -> None:
    for source, folder in ((None, tmp_path / "m"), (torch.nn.Linear(1, 1), tmp_path / "m"), (runs / "seed0", None)):
        with pytest.raises(UserError, match="must be a path"):
            attn.save_pretrained(source, folder)
    with pytest.raises(UserError, match="repo=3: must be organisation/name"):
        attn.push_to_hub(runs / "seed0", 3)
    with pytest.raises(ValueError, match="model=None must be a network"):
        attn.fuse(None)
    with pytest.raises(ValueError, match="must be names"):
        attn.timm.register(1, 2)


def test_a_folder_executes_nothing(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["attn"]["config"]["attention"]["block"]["_target_"] = "antigravity.Attention"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=r"if you trust it, say so: .*attn.load\(path, trust=\['antigravity'\]\)"):
        attn.load(tmp_path / "model")
    assert "antigravity" not in sys.modules


def spoil(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    content = json.loads(config.read_text())
    if how == "no weights":
        weights.unlink()
    elif how == "half of the weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "other weights":
        save_file(dict(list(load_file(weights).items())[1:]), weights)
    elif how == "no json":
        config.write_text("{")
    elif how == "of another tool":
        del content["attn"]
    elif how == "newer":
        content["attn"]["format"] = 2
    elif how == "wrong entry":
        content["attn"]["step"] = -1
    elif how == "interpolation":
        content["attn"]["config"]["run_dir"] = "${oc.env:HOME}"
    if how in ("of another tool", "newer", "wrong entry", "interpolation"):
        config.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no weights", "cannot be read"),
        ("half of the weights", "cannot be read"),
        ("other weights", "1 missing"),
        ("no json", "cannot be read"),
        ("of another tool", "is not of attn.save_pretrained"),
        ("newer", "has format 2; this version reads 1"),
        ("wrong entry", "its entry 'step' must be"),
        ("interpolation", "is an interpolation"),
    ],
)
def test_a_damaged_folder_is_refused(saved: Path, tmp_path: Path, how: str, message: str) -> None:
    shutil.copytree(saved, tmp_path / "model")
    spoil(tmp_path / "model", how)
    with pytest.raises(BadCheckpoint, match=message):
        attn.load(tmp_path / "model")


def test_a_folder_that_is_none_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="is a folder; name the file"):
        attn.load(tmp_path)
