"""Checkpoints of the authors, timm and torchvision: every listing, starts for fine-tuning, and what is refused."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from commands import TINY, call, composed
from parity import LISTINGS, NETWORKS, authors_file, check_listing, check_translation, converted, dct, fill, listing, theirs
from safetensors.torch import save_file
from torchvision.models import regnet

import attn
from attn.config import parse
from attn.distributed import launch
from attn.errors import UserError
from attn.models import convert
from attn.runs import checkpoint, load
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.convert import Report, config_of, convert_file, convert_own, save
from attn.training.setup import prepare
from attn.training.stop_request import StopRequest

SMALL = "getheta_mnasnet1_0"


@pytest.mark.slow
@pytest.mark.parametrize("network", LISTINGS)
def test_names_shapes_and_values_are_those_of_the_authors_checkpoint(network: str) -> None:
    """In memory. From file to file: below, and where outputs are compared (test_ba_parity.py and its like)."""
    check_listing(network)
    check_translation(network)


def test_every_listing_is_supported_with_and_without_its_ending() -> None:
    for network in LISTINGS:
        source, architecture = NETWORKS[network]
        assert convert.find(source, network) is architecture
        for ending in convert.ENDINGS:
            assert convert.find(source, network.removesuffix(ending)) is architecture


@pytest.mark.parametrize("prefix", ["", "module.1.", "module._orig_mod."])
def test_prefixes_are_taken_away(prefix: str, tmp_path: Path) -> None:
    converted(SMALL, tmp_path, prefix)


def weights(network: str = SMALL) -> dict[str, torch.Tensor]:
    return {name: fill(name, shape) for name, shape in listing(network).items()}


def run(state: Any, tmp_path: Path, *overrides: str, network: str = SMALL) -> Report:
    torch.save(state, tmp_path / "in.pth")
    return convert_file(NETWORKS[network][0], network, tmp_path / "in.pth", tmp_path / "out.pt", overrides)


@pytest.mark.parametrize("wrap", [dict, lambda state: {"model": state}, lambda state: {"state_dict": state, "epoch": 3}])
def test_bare_and_wrapped_state_dicts_are_read(wrap: Callable[[dict], Any], tmp_path: Path) -> None:
    run(wrap(weights()), tmp_path)
    assert attn.load(tmp_path / "out.pt") is not None


def test_what_training_scripts_save_beside_the_weights_is_read(tmp_path: Path) -> None:
    run({"state_dict": weights(), "args": argparse.Namespace(lr=0.1), "best_prec1": np.float64(77.5)}, tmp_path)


def test_files_of_the_old_format_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": weights()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert_file("dcanet", SMALL, tmp_path / "old.pth", tmp_path / "out.pt")
    assert attn.load(tmp_path / "out.pt") is not None


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in weights().items()}
    run(state, tmp_path)
    own = attn.load(tmp_path / "out.pt").state_dict()
    for key, (name, _) in theirs(SMALL).items():
        assert torch.equal(own[key].flatten(), state[name].to(own[key].dtype).flatten())
        assert own[key].dtype in (torch.float32, torch.int64)


def test_the_counters_of_norms_may_be_absent_altogether(tmp_path: Path) -> None:
    state = {name: t for name, t in weights().items() if not name.endswith("num_batches_tracked")}
    run(state, tmp_path)
    own = attn.load(tmp_path / "out.pt").state_dict()
    assert all(t == 0 for key, t in own.items() if key.endswith("num_batches_tracked"))


def test_tensors_without_a_part_may_be_absent(tmp_path: Path) -> None:
    report = run(dict(theirs_of("ba_resnext50")), tmp_path, network="ba_resnext50")
    assert report.dropped == []


def theirs_of(network: str) -> dict[str, torch.Tensor]:
    return {name: fill(name, shape) for name, shape in theirs(network).values()}


def test_the_checkpoint_says_where_it_came_from_and_how_it_is_tested(tmp_path: Path) -> None:
    authors_file("ba_efficientnet_b0", tmp_path / "in.pth")
    convert_file("bridge-attention", "ba_efficientnet_b0", tmp_path / "in.pth", tmp_path / "out.pt")
    content = checkpoint.read(tmp_path / "out.pt")
    origin = content["origin"]
    assert {key: origin[key] for key in origin if key != "sha256"} == {
        "source": "bridge-attention",
        "arch": "ba_efficientnet_b0",
        "file": "in.pth",
        "file_arch": "ba_efficientnet_b0",
        "file_epoch": 100,
    }
    assert len(origin["sha256"]) == 64
    data = content["config"]["data"]
    assert (data["name"], data["num_classes"]) == ("imagenet", 1000)
    assert (data["test_resize"], data["test_interpolation"]) == (224, "bicubic")
    assert content["config"]["attention_name"] == "ba"
    with pytest.raises(BadCheckpoint, match=r"cannot be continued.*attn\.load"):
        checkpoint.expect_resumable(content, "out.pt")


def missing(state: dict[str, torch.Tensor]) -> None:
    del state["layers.0.weight"]


def unexpected(state: dict[str, torch.Tensor]) -> None:
    state["layers.99.weight"] = torch.zeros(3)


def reshaped(state: dict[str, torch.Tensor]) -> None:
    state["classifier.1.weight"] = torch.zeros(10, 1280)


def broken(state: dict[str, torch.Tensor]) -> None:
    state["classifier.1.weight"][3, 5] = float("nan")


def transposed(state: dict[str, torch.Tensor]) -> None:
    state["classifier.1.weight"] = state["classifier.1.weight"].T.contiguous()


def one_counter_less(state: dict[str, torch.Tensor]) -> None:
    del state["layers.1.num_batches_tracked"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (missing, r"1 missing \(layers\.0\.weight\)"),
        (unexpected, r"1 unexpected \(layers\.99\.weight\)"),
        (reshaped, r"1 of another shape \(classifier\.1\.weight \[10, 1280\] instead of \[1000, 1280\]\)"),
        (transposed, r"1 of another shape \(classifier\.1\.weight \[1280, 1000\] instead of \[1000, 1280\]\)"),
        (broken, r"classifier\.1\.weight holds a NaN"),
        (one_counter_less, r"1 missing \(layers\.1\.num_batches_tracked\)"),
    ],
)
def test_other_and_partial_files_are_refused_by_the_keys_that_differ(
    fault: Callable[[dict], None], said: str, tmp_path: Path
) -> None:
    state = weights()
    fault(state)
    with pytest.raises(BadCheckpoint, match=said):
        run({"state_dict": state}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"is not se_resnet50_dcanet of dcanet: 64 missing \(.*16 unexpected \("):
        run(weights("eca_resnet50_ksize3557"), tmp_path, network="se_resnet50_dcanet")


def test_a_checkpoint_of_this_project_is_said_to_be_one(tmp_path: Path) -> None:
    run({"state_dict": weights()}, tmp_path)
    with pytest.raises(
        BadCheckpoint, match="is a checkpoint of this project, which --source attn takes, and not resnet18 of timm"
    ):
        convert_file("timm", "resnet18", tmp_path / "out.pt", tmp_path / "other.pt")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_executed(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="refused"):
        run({"state_dict": weights(), "args": Bomb(tmp_path / "exploded")}, tmp_path)
    (tmp_path / "in.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(BadCheckpoint, match="refused"):
        convert_file("dcanet", SMALL, tmp_path / "in.pth", tmp_path / "out.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1, "b": torch.ones(1)}}])
def test_files_without_weights_are_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"in\.pth holds"):
        run(content, tmp_path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": weights()}, tmp_path / "in.pth")
    whole = (tmp_path / "in.pth").read_bytes()
    middle = len(whole) // 2
    for name, content in {
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "half": whole[:middle],
        "empty": b"",
        "text": b"no weights",
        "half.safetensors": whole[:100],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadCheckpoint, match=name):
            convert_file("dcanet", SMALL, tmp_path / name, tmp_path / "out.pt")
    with pytest.raises(BadCheckpoint, match="no such file"):
        convert_file("dcanet", SMALL, tmp_path / "absent", tmp_path / "out.pt")
    with pytest.raises(BadCheckpoint, match="is a folder"):
        convert_file("dcanet", SMALL, tmp_path, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_unknown_names_are_answered_by_the_nearest_or_the_source_that_has_them(tmp_path: Path) -> None:
    def refused(source: str, arch: str, said: str) -> None:
        with pytest.raises(UserError, match=said):
            convert_file(source, arch, tmp_path / "in.pth", tmp_path / "out.pt")

    refused("dcanet", "dca_se_resnet51", "did you mean 'dca_se_resnet50'")
    refused("dcanet", "ba_resnet50", "--source bridge-attention has it")
    refused("timm", "resnet5000", "timm has no model of this name")
    refused("bananet", "ba_resnet50", "unknown source 'bananet'")


def test_an_existing_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.pt").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        run(weights(), tmp_path)
    assert (tmp_path / "out.pt").read_text() == "mine"


@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "ecaresnet26t", "mobilenetv3_small_100"])
def test_timms_weights_give_timms_outputs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    convert_file("timm", name, tmp_path / "in.safetensors", tmp_path / "out.pt")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(attn.load(tmp_path / "out.pt")(x), model(x))


# One of each family.
TORCHVISION = ["resnet18", "resnext50_32x4d", "densenet121", "mobilenet_v2", "mnasnet1_0", "shufflenet_v2_x1_0"]
TORCHVISION += ["mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t", "vit_b_16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_give_torchvisions_outputs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "in.pth")
    convert_file("torchvision", name, tmp_path / "in.pth", tmp_path / "out.pt")
    x = torch.randn(1, 3, 224, 224) if name in ("swin_t", "vit_b_16") else torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(attn.load(tmp_path / "out.pt")(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", convert.SOURCES["torchvision"])
def test_names_and_shapes_are_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = convert.SOURCES["torchvision"][name]
    compute = regnet.BlockParams.from_init_params

    def on_the_cpu(**settings: Any) -> regnet.BlockParams:
        with torch.device("cpu"):  # its widths are computed by tensors
            return compute(**settings)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", on_the_cpu)
    with torch.device("meta"):
        model = load.build(config_of(architecture, name))
        expected = {k: tuple(t.shape) for k, t in torchvision.models.get_model(name, weights=None).state_dict().items()}
    given = architecture.tensors({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    constants = {} if architecture.constants is None else architecture.constants(model)
    assert dict(given.values()) | {key: tuple(value.shape) for key, value in constants.items()} == expected


def test_fcanets_frequencies_are_compared(tmp_path: Path) -> None:
    """FcaNet-LF and others have the same names and shapes, and other values."""
    name = "layer2.1.att.dct_layer.weight"
    tensors = authors_file("fcanet50", tmp_path / "in.pth")
    tensors[name] = tensors[name].flip(0)
    torch.save(tensors, tmp_path / "in.pth")
    with pytest.raises(BadCheckpoint, match=f"is not fcanet50 of bridge-attention: {name} has other values"):
        convert_file("bridge-attention", "fcanet50", tmp_path / "in.pth", tmp_path / "out.pt")
    halves = {key: value.half() if value.is_floating_point() else value for key, value in theirs_of("fcanet50").items()}
    halves[name] = dct(512, 28).half()
    torch.save(halves, tmp_path / "half.pth")  # the other blocks' may be absent
    report = convert_file("bridge-attention", "fcanet50", tmp_path / "half.pth", tmp_path / "out.pt")
    assert report.dropped == [name]


def test_a_start_takes_what_fits_and_reports_the_rest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("seresnet18")
    torch.save(source.state_dict(), tmp_path / "in.pth")
    overrides = ["backbone=resnet18", "attention=ba", "data=cifar100", "data.image_size=64", "data.test_resize=64"]
    report = convert_file("timm", "seresnet18", tmp_path / "in.pth", tmp_path / "out.pt", overrides)
    theirs, own = source.state_dict(), attn.load(tmp_path / "out.pt").state_dict()
    assert set(report.matched) == {key for key in own if ".se." not in key and not key.startswith("fc.")}
    assert set(report.new) == {key for key in own if ".se." in key}
    assert set(report.missing) == {key for key in theirs if ".se." in key}
    assert report.reshaped == ["fc.weight", "fc.bias"]
    assert all(torch.equal(own[key], theirs[key]) for key in report.matched)
    origin = checkpoint.read(tmp_path / "out.pt")["origin"]
    assert (origin["start"], origin["new"]) == (overrides, report.new)
    lines = report.lines()
    assert lines[0] == f"{len(report.matched)} tensors matched"
    assert [line.split(":")[0] for line in lines[1:]] == [
        f"{len(report.new)} new, as initialised",
        f"{len(report.missing)} missing from the model",
        "2 of another shape, as initialised",
    ]


def test_weights_of_timms_se_are_those_of_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("seresnet50").eval()
    torch.save(source.state_dict(), tmp_path / "in.pth")
    report = convert_file(
        "timm", "seresnet50", tmp_path / "in.pth", tmp_path / "out.pt", ["backbone=resnet50", "attention=se"]
    )
    assert (report.new, report.missing, report.reshaped) == ([], [], [])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(attn.load(tmp_path / "out.pt")(x), source(x), rtol=1e-4, atol=1e-4)


def test_a_start_of_a_partial_file_or_of_nothing_is_refused(tmp_path: Path) -> None:
    state = weights()
    missing(state)
    with pytest.raises(BadCheckpoint, match=r"layers\.0\.weight"):
        run(state, tmp_path, "attention=ba")
    with pytest.raises(UserError, match="shares no tensor"):
        run(weights(), tmp_path, "backbone=swin_tiny_patch4_window7_224", "attention=none")
    with pytest.raises(UserError, match="did you mean 'ba'"):
        run(weights(), tmp_path, "attention=baa")


@pytest.mark.slow
def test_the_script_converts_and_eval_takes_the_result(tmp_path: Path) -> None:
    authors_file("ba_resnet18", tmp_path / "in.pth.tar")
    arguments = ["scripts/convert.py", "--source", "bridge-attention", "--arch", "ba_resnet18"]
    done = call([*arguments, str(tmp_path / "in.pth.tar"), str(tmp_path / "out.pt")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["226 tensors matched", f"saved {tmp_path / 'out.pt'}"]
    size = ["data.num_classes=1000", "data.image_size=32", "data.test_resize=32", "data.samples=8", "data.workers=0"]
    scores = call(["eval.py", f"checkpoint={tmp_path / 'out.pt'}", "data=fake", *size])
    assert scores.returncode == 0, scores.stderr
    assert json.loads((tmp_path / "eval-out-fake.json").read_text())["images"] == 8
    again = call([*arguments, str(tmp_path / "in.pth.tar"), str(tmp_path / "out.pt")])
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists" in again.stderr


def test_an_se_mobilenetv3_of_the_ba_net_authors_computes_what_its_layers_say(tmp_path: Path) -> None:
    """MobileNetV3-small, written out by its checkpoint's names: gate before activation, in the first block after it."""
    t = weights("mobilenetv3_small_banet")

    def conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        w = t[f"{name}.weight"]
        return F.conv2d(x, w, stride=stride, padding=w.shape[2] // 2, groups=w.shape[0] if w.shape[1] == 1 else 1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (t[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    def gate(x: torch.Tensor, name: str) -> torch.Tensor:
        if f"{name}.fc.0.weight" not in t:
            return x
        hidden = F.linear(x.mean((2, 3)), t[f"{name}.fc.0.weight"], t[f"{name}.fc.0.bias"]).relu()
        weight = F.relu6(F.linear(hidden, t[f"{name}.fc.2.weight"], t[f"{name}.fc.2.bias"]) + 3) / 6
        return x * weight[:, :, None, None]

    x = images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = F.hardswish(norm(conv(x, "features.0.0", 2), "features.0.1"))
    for block in range(1, 12):
        name, stride, act = f"features.{block}.conv", 2 if block in (1, 2, 4, 9) else 1, F.relu if block < 4 else F.hardswish
        shortcut = x
        if block == 1:
            x = gate(act(norm(conv(x, f"{name}.0", stride), f"{name}.1")), f"{name}.3")
            x = norm(conv(x, f"{name}.4"), f"{name}.5")
        else:
            x = act(norm(conv(x, f"{name}.0"), f"{name}.1"))
            x = act(gate(norm(conv(x, f"{name}.3", stride), f"{name}.4"), f"{name}.5"))
            x = norm(conv(x, f"{name}.7"), f"{name}.8")
        x = x + shortcut if x.shape == shortcut.shape else x
    x = F.hardswish(norm(conv(x, "conv.0"), "conv.1")).mean((2, 3))
    x = F.hardswish(F.linear(x, t["classifier.0.weight"], t["classifier.0.bias"]))
    expected = F.linear(x, t["classifier.3.weight"], t["classifier.3.bias"])
    with torch.no_grad():
        logits = converted("mobilenetv3_small_banet", tmp_path)(images)
    assert ((logits - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-4


def test_training_begins_with_the_weights_of_a_start(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("resnet10t")
    torch.save(source.state_dict(), tmp_path / "in.pth")
    convert_file("timm", "resnet10t", tmp_path / "in.pth", tmp_path / "out.pt", [*TINY, "attention=se"])
    cfg = composed(*TINY, "attention=se", "seed=1", f"init={tmp_path / 'out.pt'}", f"run_dir={tmp_path}", "data.workers=0")
    with launch("cpu", 60) as ranks:
        run = prepare(cfg, tmp_path, ranks, StopRequest(), None)
        assert run is not None
        state, start = run.state.model.state_dict(), attn.load(tmp_path / "out.pt").state_dict()
        assert all(torch.equal(state[key], start[key]) for key in start)
        other = composed(*TINY, "attention=eca", f"init={tmp_path / 'out.pt'}", f"run_dir={tmp_path}", "data.workers=0")
        with pytest.raises(BadCheckpoint, match="of another architecture"):
            prepare(other, tmp_path, ranks, StopRequest(), None)
    assert torch.equal(start["layer1.0.conv1.weight"], source.state_dict()["layer1.0.conv1.weight"])
    with pytest.raises(UserError, match="pretrained=true"):
        composed("init=out.pt", "pretrained=true")


def test_a_checkpoint_is_a_start_for_other_classes_and_attentions(tmp_path: Path) -> None:
    config = composed(*TINY, "attention=se", "attention.block.reduction=8")
    state = load.build(config).state_dict()
    save(tmp_path / "best.pt", {"model": state, "config": parse.to_dict(config)})
    report = convert_own(tmp_path / "best.pt", tmp_path / "classes.pt", ["data.num_classes=7"])
    content = checkpoint.read(tmp_path / "classes.pt")
    assert (report.new, report.missing) == ([], [])
    assert report.reshaped == ["fc.weight", "fc.bias"]
    assert content["config"]["attention"] == parse.to_dict(config)["attention"]
    assert content["config"]["attention_name"] == config.attention_name
    assert {**content["config"]["data"], "num_classes": config.data.num_classes} == parse.to_dict(config)["data"]
    assert all(torch.equal(content["model"][key], state[key]) for key in report.matched)
    report = convert_own(tmp_path / "best.pt", tmp_path / "attention.pt", ["attention=eca"])
    assert all(".se." in key for key in (*report.new, *report.missing, *report.reshaped))
    assert checkpoint.read(tmp_path / "attention.pt")["config"]["attention_name"] == "eca"
    for start, message in (([], "is a checkpoint already"), (["data.num_clases=7"], "num_classes")):
        with pytest.raises(UserError, match=message):
            convert_own(tmp_path / "best.pt", tmp_path / "none.pt", start)
    assert not (tmp_path / "none.pt").exists()
