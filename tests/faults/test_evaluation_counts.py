"""Every validation image counts once, on any number of ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_harness import TINY, compose_config, finished, free_port

from attn.config.evaluation import Request
from attn.data.loader import evaluation_batches, evaluation_data
from attn.distributed import Ranks, launch
from attn.evaluation.evaluate import Settings, evaluate
from attn.runs import load, metrics


def _evaluate(rank: int, world: int, port: int, samples: int, batch: int, output: str) -> None:
    multiprocessing.set_start_method("fork", force=True)
    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cfg = compose_config([*TINY, f"data.samples={samples}"], Path(output))
    torch.manual_seed(0)
    model = load.build(cfg)
    with launch("cpu", 60) as ranks:
        data = evaluation_data(cfg.data)
        scores = evaluate(model, data, ranks, Settings(batch))
        indices = [i for b in evaluation_batches(data, batch, 0, ranks) for i in b.indices.tolist()]
    row = [scores.count, scores.correct1, scores.correct5, scores.loss, indices]
    (Path(output) / f"{world}-{batch}-{rank}.json").write_text(json.dumps(row))


def evaluated(world: int, samples: int, batch: int, output: Path) -> list[list[Any]]:
    context, port = multiprocessing.get_context("forkserver"), free_port()
    context.set_forkserver_preload(["attn.training.loop", "attn.evaluation.job"])
    processes = [context.Process(target=_evaluate, args=(r, world, port, samples, batch, str(output))) for r in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [json.loads((output / f"{world}-{batch}-{rank}.json").read_text()) for rank in range(world)]


def test_counts_do_not_depend_on_ranks_and_batches(tmp_path: Path) -> None:
    reference = evaluated(1, 101, 16, tmp_path)[0]
    assert reference[0] == 101
    for world, batch in ((1, 7), (2, 7), (2, 16), (3, 7), (3, 16)):
        rows = evaluated(world, 101, batch, tmp_path)
        assert sorted(index for row in rows for index in row[4]) == list(range(101))
        for row in rows:
            assert row[:3] == reference[:3]
            assert row[3] == pytest.approx(reference[3], abs=1e-6)


def test_more_ranks_than_images(tmp_path: Path) -> None:
    rows = evaluated(3, 2, 7, tmp_path)
    assert [len(row[4]) for row in rows] == [1, 1, 0]
    assert all(row[:4] == rows[0][:4] for row in rows)
    assert rows[0][0] == 2


def test_an_evaluation_batch_is_a_share_of_the_images() -> None:
    cfg = compose_config([*TINY, "data.samples=10"], Path("run"))
    data, cpu = evaluation_data(cfg.data), torch.device("cpu")
    sizes = [[len(b.labels) for b in evaluation_batches(data, 2, 0, Ranks(rank, 3, cpu))] for rank in range(3)]
    assert sizes == [[2, 2], [2, 1], [2, 1]]


@pytest.mark.parametrize("amp", ["null", "bf16"])
def test_eval_py_repeats_the_last_evaluation_of_training(tmp_path: Path, amp: str) -> None:
    from attn.evaluation import job

    run_dir = tmp_path / "run"
    finished(run_dir, "schedule.ema_decay=0.5", f"schedule.amp={amp}", ranks=2)
    row = metrics.read_metrics(run_dir)[-1]
    for weights, prefix in (("raw", "val_"), ("ema", "ema_val_")):
        output = str(tmp_path / f"{weights}.json")
        request = Request(str(run_dir / "last.pt"), weights, batch_size=4, device="cpu", output=output)
        scores = job.run(request)
        assert (scores.top1, scores.top5) == (row[f"{prefix}top1"], row[f"{prefix}top5"])
        assert scores.loss == pytest.approx(row[f"{prefix}loss"], abs=1e-6)
    one = tmp_path / "one"
    finished(one, "schedule.ema_decay=0.5", f"schedule.amp={amp}")
    last = metrics.read_metrics(one)[-1]
    scores = job.run(Request(str(one / "last.pt"), "ema", device="cpu"))
    assert scores.row("ema_val_") == {key: last[key] for key in ("ema_val_loss", "ema_val_top1", "ema_val_top5")}
