"""Values that are not finite."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from fault_harness import PER_EPOCH, TINY, Run, compose_config, finished
from fault_injection import first_scale, nan_loss
from timm.utils import ModelEmaV3

from attn.data.loader import TrainData, evaluation_data, train_data
from attn.distributed import Ranks
from attn.errors import TrainingStopped
from attn.runs import checkpoint, load, metrics
from attn.runs.steps import StepLog
from attn.training import optim, stopping
from attn.training import run as training_run
from attn.training.state import State
from attn.training.stop_request import StopRequest


def is_finite(content: dict) -> bool:
    return checkpoint.non_finite({key: content[key] or {} for key in ("model", "ema", "optimizer")}) is None


def test_nan_on_one_rank_stops_both_before_the_update(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", "save_every_steps=1", ranks=2, faults={1: [nan_loss(4)]})
    assert stopped.wait() == [3, 3]
    errors = [line for line in stopped.text.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    found = re.search(r"step 4: rank 1 has loss nan, images \[([\d, ]+)\]; no update was made", errors[0])
    assert found is not None, errors[0]
    cfg, second = compose_config(TINY, tmp_path / "run"), Ranks(1, 2, torch.device("cpu"))
    expected = [index for _, index in train_data(cfg.data, 8, 1, 0, second).keys(4, second)[0]]
    assert [int(index) for index in found[1].split(",")] == expected
    assert str(tmp_path / "run" / "last.pt") in errors[0]
    contents = [checkpoint.read(path) for path in (tmp_path / "run").glob("*.pt")]
    assert max(content["step"] for content in contents) == 4
    assert all(is_finite(content) for content in contents)


@pytest.mark.parametrize("ranks", [1, 2])
def test_nan_is_skipped_if_so_configured(tmp_path: Path, ranks: int) -> None:
    finished(tmp_path / "run", "nonfinite=skip", ranks=ranks, faults={ranks - 1: [nan_loss(PER_EPOCH)]})
    rows = metrics.read_metrics(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [0, 1]
    assert all(math.isfinite(row[key]) for row in rows for key in ("train_loss", "val_loss"))
    assert is_finite(checkpoint.read(tmp_path / "run" / "last.pt"))


def test_after_a_stop_the_run_continues_with_skipping(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", "save_every_steps=1", faults=[nan_loss(4)])
    assert stopped.wait() == [3]
    again = finished(tmp_path / "run", "nonfinite=skip", faults=[nan_loss(4)])
    assert "at step 4 of 6" in again.text
    assert metrics.read_metrics(tmp_path / "run")[1]["skipped"] == 1


def test_skipping_has_an_end(tmp_path: Path) -> None:
    stopped = Run(tmp_path / "run", "nonfinite=skip", "max_skipped=2", faults=[nan_loss(1, times=9)])
    assert stopped.wait() == [3]
    assert "step 3: rank 0 has loss nan" in stopped.text
    assert "the 2 steps before it were skipped (max_skipped=2)" in stopped.text


def test_a_scaler_skips_counts_and_gives_up(tmp_path: Path) -> None:
    """Each step that is skipped halves the scale. It starts low: here no finite loss overflows in half precision."""
    start = first_scale(2.0**6)
    finished(tmp_path / "run", "schedule.amp=fp16", faults=[start, nan_loss(1, times=2)])
    assert [row["skipped"] for row in metrics.read_metrics(tmp_path / "run")] == [2, 0]
    content = checkpoint.read(tmp_path / "run" / "last.pt")
    assert content["scaler"]["scale"] == 2.0**4
    assert is_finite(content)
    stopped = Run(tmp_path / "other", "schedule.amp=fp16", "max_skipped=3", faults=[start, nan_loss(1, times=9)])
    assert stopped.wait() == [3]
    assert "step 4" in stopped.text
    assert "max_skipped=3" in stopped.text


def test_a_skipped_step_changes_nothing(tmp_path: Path) -> None:
    one = finished(tmp_path / "run", "nonfinite=skip", "save_every_steps=1", faults=[nan_loss(1)])
    assert "step 2/6" in one.text
    after = checkpoint.read(tmp_path / "run" / "last.pt")
    assert int(after["model"]["bn1.num_batches_tracked"]) == 5


@pytest.mark.parametrize("where", ["model", "ema", "optimizer"])
def test_a_nan_is_caught_at_the_save(tmp_path: Path, where: str) -> None:
    cfg = compose_config([*TINY, "schedule.ema_decay=0.9"], tmp_path)
    model = load.build(cfg)
    ema = ModelEmaV3(model)
    state = State(model, ema, optim.build_optimizer(cfg.schedule, model), torch.amp.GradScaler("cpu", enabled=False), step=7)
    state.optimizer.zero_grad()
    sum(p.sum() for p in model.parameters()).backward()
    state.optimizer.step()
    ranks, data = Ranks(0, 1, torch.device("cpu")), evaluation_data(cfg.data)
    training = TrainData(data, 8, 1, 0, 0)
    log = StepLog(tmp_path)
    run = training_run.Run(cfg, tmp_path, ranks, StopRequest(), training, data, state, model, None, None, 9, log)
    stopping.save(run)
    before = (tmp_path / "last.pt").read_bytes()
    if where == "optimizer":
        next(iter(state.optimizer.state.values()))["momentum_buffer"].view(-1)[0] = math.nan
    else:
        module = model if where == "model" else ema.module
        module.get_buffer("bn1.running_var")[3] = math.inf
    name = {"optimizer": "momentum_buffer", "model": "model.bn1.running_var", "ema": "ema.bn1.running_var"}[where]
    with pytest.raises(TrainingStopped, match=f"step 7: .*{name} is not finite; not saved"):
        stopping.save(run)
    assert (tmp_path / "last.pt").read_bytes() == before
