"""What is handed to clusters: the files keep to the schemas, and the commands in them are commands of train.py."""

from __future__ import annotations

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import ROOT, SMALL, TINY, Command, call_fresh, composed

import attn

FOLDER = ROOT / "scripts" / "clusters"
SCHEMAS: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "fixtures" / "cluster_schemas.yaml").read_text())


def content(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.stem)
def test_the_files_keep_to_the_schemas(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'attn[dev]'")
    schema = {**SCHEMAS[path.stem], "definitions": SCHEMAS["definitions"]}
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content(path.stem), schema)
    wrong = {**content(path.stem), "replica": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def kubernetes() -> dict[str, tuple[list[str], dict[str, str]]]:
    """The whole command and the environment of each manifest."""
    (pod,) = content("pytorchjob")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    parts = {"pytorchjob": pod, "trainjob": content("trainjob")["spec"]["trainer"]}
    return {
        name: (part["command"] + part["args"], {e["name"]: e["value"] for e in part["env"]}) for name, part in parts.items()
    }


@pytest.mark.parametrize("name", ["pytorchjob", "trainjob"])
def test_the_manifests_run_attns_training(name: str) -> None:
    command, environment = kubernetes()[name]
    launcher, _, overrides = (command[: command.index("-m")], "-m", command[command.index("-m") + 2 :])
    assert command[0] == "torchrun"
    assert "SIGTERM" in launcher[-1]
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    cfg = composed(*overrides)
    assert (cfg.run_dir, cfg.data.root) == ("/runs/ba", "/data/imagenet")
    text = (FOLDER / f"{name}.yaml").read_text()
    assert "mountPath: /runs}" in text
    assert "mountPath: /data, readOnly: true}" in text


def test_the_task_runs_attns_training(tmp_path: Path) -> None:
    """Its shell script, with a torchrun that prints what it is given."""
    (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    environment = {key: str(value) for key, value in content("skypilot")["envs"].items()}
    environment |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    environment["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-eu", "-c", content("skypilot")["run"]], env=environment, capture_output=True, text=True, check=True
    )
    shared, *arguments = done.stdout.splitlines()
    assert shared == "1"
    assert {"--rdzv-endpoint=10.0.0.1:29500", "--nnodes=2", "--nproc-per-node=8"} <= set(arguments)
    overrides = arguments[arguments.index("train.py") + 1 :]
    assert composed(*overrides).run_dir == "/runs/resnet50-ba"
    assert shlex.split(content("skypilot")["setup"])[:2] == ["pip", "install"]


@pytest.mark.slow
def test_ray_trains_on_two_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'attn[ray]'")
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    overrides = [*TINY, "attention=se", "schedule.batch_size=256", f"run_dir={tmp_path / 'run'}"]
    done = call_fresh(
        ["scripts/ray_train.py", "--workers", "2", "--failures", "0", *overrides], timeout=400, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "DONE").exists()
    (start,) = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert json.loads(start)["ranks"] == 2


def test_without_ray_the_script_says_what_to_install() -> None:
    script = "import sys, runpy; sys.modules['ray'] = None; sys.argv = ['x']; runpy.run_path('scripts/ray_train.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: this needs Ray: pip install 'attn[ray]'\n")


def test_the_model_of_scaling() -> None:
    predict = runpy.run_path(str(ROOT / "scripts" / "scaling.py"))["predict"]
    gradients = 100 * 2**20
    assert predict(1, 0.1, gradients, 1e9) == 1
    assert predict(64, 0.1, gradients, 1e15) == pytest.approx(1)
    # Hidden but for the last of four buckets: 2 x 7/8 x 25 MiB at 10 GB/s come on top.
    assert predict(8, 0.1, gradients, 10e9) == pytest.approx(0.1 / (0.1 + 1.75 * 25 * 2**20 / 10e9))
    # A slow network: a third of the step, then nothing but the transfer.
    assert predict(2, 0.1, gradients, 1e8) == pytest.approx(0.1 / (0.1 / 3 + gradients / 1e8))
    speeds = [predict(n, 0.1, gradients, 1e9) for n in (1, 2, 4, 8, 64)]
    assert speeds == sorted(speeds, reverse=True)


@pytest.mark.slow
def test_scaling_says_how_many_bytes_travel(in_process: Command) -> None:
    small = [*SMALL, "attention=se", "attention.block.reduction=4", "data.num_classes=10"]
    small += ["+backbone.channels=[16,16,24,24]", "+backbone.stem_width=16", "device=cpu", "data.workers=0"]
    done = in_process(
        ["scripts/scaling.py", "--ranks", "1", "--batch", "4", "--steps", "2", "--predict", "8", "--bandwidth", "1", *small]
    )
    assert done.returncode == 0, done.stderr
    _, measured, about, predicted = done.stdout.splitlines()
    model = attn.create_model("resnet10t", "se", 10, reduction=4, channels=[16, 16, 24, 24], stem_width=16)
    assert (
        about
        == f"predicted, for {4 * sum(p.numel() for p in model.parameters()) / 1e6:.1f} MB of gradients per step at 1 GB/s:"
    )
    assert (measured.split()[0], predicted.split()[0]) == ("1", "8")
    assert 0 < float(predicted.split()[3].rstrip("%")) <= 100
