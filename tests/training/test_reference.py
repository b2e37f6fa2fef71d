"""The loop against plain torch: its updates, written a second time without any of its code."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from timm.data import Mixup
from torch import Tensor, nn

from attn import rng
from attn.config import parse
from attn.config.groups import config_dir
from attn.config.schema import Config
from attn.data.ahead import Ahead
from attn.data.loader import Batch, to_device, train_data
from attn.distributed import Ranks
from attn.errors import TrainingStopped
from attn.evaluation.evaluate import Scores
from attn.models.create import set_last_norm
from attn.runs import checkpoint, load, metrics
from attn.training import epoch as epoch_end
from attn.training import loop, setup
from attn.training.stop_request import StopRequest

CPU = Ranks(0, 1, torch.device("cpu"))
PER_EPOCH, STEPS, CLASSES = 3, 6, 8
# GroupNorm: the gradient of a batch is the mean of those of its parts. Without random augmentation an image is its index.
CONFIG = ["data=fake", f"data.num_classes={CLASSES}", "data.samples=24", "data.image_size=32", "data.test_resize=32"]
CONFIG += ["data.workers=0", "data.crop=resize", "data.hflip=0", "logger=none", "device=cpu", "schedule.batch_size=8"]
CONFIG += ["backbone=resnet18", "backbone.name=resnet10t", "+backbone.channels=[8,12,16,24]", "+backbone.stem_width=8"]
CONFIG += ["+backbone.norm_layer=groupnorm1", "attention=eca", "attention_name=eca", "schedule.zero_init_last=false"]
CONFIG += ["schedule.epochs=2", "schedule.warmup_epochs=1", "schedule.accumulate=2", "schedule.label_smoothing=0.1"]
CONFIG += ["schedule.no_decay=[norm,bias]", "schedule.weight_decay=0.05", "schedule.clip_grad=1.5", "schedule.ema_decay=0.7"]
SGD = ["schedule.optimizer=sgd", "schedule.lr=0.2", "schedule.momentum=0.8", "schedule.nesterov=true"]
ADAMW = ["schedule.optimizer=adamw", "schedule.lr=0.01", "schedule.betas=[0.8,0.95]"]


def config(run_dir: Path, *overrides: str) -> Config:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return parse.parse(compose("train", [*CONFIG, *overrides, f"run_dir={run_dir}"]))


def trained(cfg: Config) -> dict[str, Any]:
    """What the loop leaves on the disk."""
    loop.train(cfg)
    return checkpoint.read(Path(cfg.run_dir) / "last.pt")


def initial(cfg: Config) -> nn.Module:
    rng.seed_everything(cfg.seed, "initialisation")
    model = load.build(cfg)
    set_last_norm(model, zero=False)
    return model


def step_batches(cfg: Config) -> list[list[Batch]]:
    """The parts of each step's batch."""
    data = train_data(cfg.data, 8, 2, cfg.seed, CPU)
    pixels = data.dataset.pixels
    parts = [to_device(part, CPU.device, False, pixels) for part in data.batches(0, STEPS, CPU)]
    return [parts[i : i + 2] for i in range(0, 2 * STEPS, 2)]


@dataclass
class Reference:
    """SGD with Nesterov momentum or AdamW, by their equations."""

    lrs: Sequence[float]
    clip: float = math.inf
    decay: float = 0.05
    averaging: float = 0.7
    smoothing: float = 0.1
    skipped: Sequence[int] = ()
    adamw: bool = False
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def targets(self, labels: Tensor) -> Tensor:
        return (1 - self.smoothing) * torch.eye(CLASSES)[labels] + self.smoothing / CLASSES

    def run(self, model: nn.Module, batches: Sequence[Sequence[Batch]], mix: Any = None) -> dict[str, dict[str, Tensor]]:
        weights = dict(model.named_parameters())
        averaged = {name: w.detach().clone() for name, w in weights.items()}
        first = {name: torch.zeros_like(w) for name, w in weights.items()}
        second = {name: torch.zeros_like(w) for name, w in weights.items()}
        done = 0
        for step, parts in enumerate(batches):
            if step in self.skipped:
                continue
            sums = {name: torch.zeros_like(w) for name, w in weights.items()}
            for part in parts:
                images, targets = (part.images, self.targets(part.labels)) if mix is None else mix(part.images, part.labels)
                loss = -(targets * model(images).log_softmax(1)).sum(1).mean()
                for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                    sums[name] += g / len(parts)
                self.losses.append(loss.item())
            norm = math.sqrt(sum(float(g.square().sum()) for g in sums.values()))
            self.norms.append(norm)
            scale = min(1.0, self.clip / (norm + 1e-6))
            done += 1
            lr = self.lrs[step]
            with torch.no_grad():
                for name, w in weights.items():
                    g = sums[name] * scale
                    decay = self.decay if w.ndim > 1 else 0.0  # norms and biases, and nothing else, are vectors here
                    if self.adamw:
                        w.mul_(1 - lr * decay)
                        first[name] = 0.8 * first[name] + 0.2 * g
                        second[name] = 0.95 * second[name] + 0.05 * g * g
                        spread = (second[name] / (1 - 0.95**done)).sqrt() + 1e-8
                        w.sub_(lr * first[name] / (1 - 0.8**done) / spread)
                    else:
                        g = g + decay * w
                        first[name] = 0.8 * first[name] + g
                        w.sub_(lr * (g + 0.8 * first[name]))
                    averaged[name] = self.averaging * averaged[name] + (1 - self.averaging) * w
        return {"model": {name: w.detach() for name, w in weights.items()}, "ema": averaged}


def rates(lr: float) -> list[float]:
    """Three steps of warm-up, three of a cosine to 0."""
    return [lr / 3, 2 * lr / 3, lr, lr, lr * (1 + math.cos(math.pi / 3)) / 2, lr * (1 + math.cos(2 * math.pi / 3)) / 2]


def assert_same(found: dict[str, Any], expected: dict[str, dict[str, Tensor]], start: nn.Module, tolerance: float) -> None:
    """Weights and averaged weights moved equally, up to a fraction of the largest movement."""
    before = dict(start.named_parameters())
    for key in ("model", "ema"):
        moved = max(float((expected[key][name] - before[name]).detach().abs().max()) for name in before)
        for name in before:
            torch.testing.assert_close(
                found[key][name], expected[key][name], rtol=0, atol=tolerance * moved, msg=f"{key} {name}"
            )


def test_sgd(tmp_path: Path) -> None:
    cfg = config(tmp_path, *SGD)
    reference = Reference(rates(0.2), clip=1.5)
    expected = reference.run(initial(cfg), step_batches(cfg))
    assert min(reference.norms) < 1.5 < max(reference.norms)  # clipped in some steps and not in others
    assert_same(trained(cfg), expected, initial(cfg), 1e-4)
    rows = metrics.read_metrics(tmp_path)
    for epoch in (0, 1):
        mean = sum(reference.losses[6 * epoch : 6 * epoch + 6]) / 6
        assert rows[epoch]["train_loss"] == pytest.approx(mean, rel=1e-5)
        assert rows[epoch]["lr"] == pytest.approx(rates(0.2)[3 * epoch + 2])


def test_adamw(tmp_path: Path) -> None:
    cfg = config(tmp_path, *ADAMW)
    expected = Reference(rates(0.01), clip=1.5, adamw=True).run(initial(cfg), step_batches(cfg))
    assert_same(trained(cfg), expected, initial(cfg), 1e-3)


def test_mixed_targets_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What mixup gives is smoothed already."""

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hot = torch.eye(CLASSES)[labels]
        return 0.7 * images + 0.3 * images.flip(0), 0.7 * hot + 0.3 * hot.flip(0)

    monkeypatch.setattr(Mixup, "__call__", lambda _, images, labels: mix(images, labels))
    cfg = config(tmp_path, *SGD, "schedule.mixup=0.4")
    expected = Reference(rates(0.2), clip=1.5).run(initial(cfg), step_batches(cfg), mix)
    assert_same(trained(cfg), expected, initial(cfg), 1e-4)


def test_mixup_gets_the_settings(tmp_path: Path) -> None:
    options = ["mixup=0.3", "cutmix=0.7", "mix_prob=0.6", "mix_switch_prob=0.2"]
    mixup = setup.build_mixup(config(tmp_path, *(f"schedule.{option}" for option in options)), CPU)
    assert mixup is not None
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.3, 0.7, 0.6, 0.2)
    assert (mixup.label_smoothing, mixup.num_classes) == (0.1, CLASSES)


@pytest.mark.parametrize("initial_scale", [2.0**4, 2.0**12])
def test_the_scale_of_the_loss_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initial_scale: float
) -> None:
    """Computed in float32, with the scaler of fp16: its scale is taken out before the gradient is clipped."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, init_scale=initial_scale, **k))
    monkeypatch.setattr(loop, "autocast", lambda *_: contextlib.nullcontext())
    cfg = config(tmp_path, *SGD, "schedule.amp=fp16")
    expected = Reference(rates(0.2), clip=1.5).run(initial(cfg), step_batches(cfg))
    found = trained(cfg)
    assert found["scaler"]["scale"] == initial_scale
    assert_same(found, expected, initial(cfg), 1e-4)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: Sequence[int]) -> None:
    """The images of these steps become NaN."""
    original, calls = loop.to_device, iter(range(1000))

    def to_device(batch: Batch, *rest: Any) -> Batch:
        batch = original(batch, *rest)
        return batch._replace(images=batch.images * math.nan) if next(calls) // 2 in steps else batch

    monkeypatch.setattr(loop, "to_device", to_device)


def test_a_skipped_step_leaves_weights_and_averages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One NaN at a time is allowed, and two that do not follow each other are one at a time."""
    spoil(monkeypatch, (1, 3))
    cfg = config(tmp_path, *SGD, "nonfinite=skip", "max_skipped=1")
    expected = Reference(rates(0.2), clip=1.5, skipped=(1, 3)).run(initial(cfg), step_batches(cfg))
    assert_same(trained(cfg), expected, initial(cfg), 1e-4)
    assert [row["skipped"] for row in metrics.read_metrics(tmp_path)] == [1, 1]


def test_two_skipped_steps_in_a_row_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, (1, 2))
    with pytest.raises(TrainingStopped, match=r"step 2: .*the 1 steps before it were skipped"):
        loop.train(config(tmp_path, *SGD, "nonfinite=skip", "max_skipped=1"))


def test_best_is_that_of_the_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([90, 20, 10, 50, 70, 30])  # of the weights and of the averaged ones, epoch by epoch
    monkeypatch.setattr(epoch_end, "evaluate_unless", lambda *_, **__: Scores(100, next(scores), 100, 1.0))
    found = trained(config(tmp_path, *SGD, "schedule.epochs=3"))
    rows = metrics.read_metrics(tmp_path)
    assert [(row["val_top1"], row["ema_val_top1"]) for row in rows] == [(90, 20), (10, 50), (70, 30)]
    assert found["best"] == {"top1": max(row["ema_val_top1"] for row in rows), "epoch": 2}
    assert checkpoint.read(tmp_path / "best.pt")["step"] == 2 * PER_EPOCH


def test_every_step_part_rank_and_seed_draws_its_own_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, drop path and mixup draw from a key; the same key draws the same."""
    drawn: list[float] = []
    original = loop.forward

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        drawn.append(torch.rand(()).item())
        return original(*arguments)

    monkeypatch.setattr(loop, "forward", forward)

    def draws(seed: int, rank: int) -> list[float]:
        cfg = config(tmp_path / f"{seed}-{rank}-{len(drawn)}", f"seed={seed}")
        run = setup.prepare(cfg, tmp_path, Ranks(rank, 1, CPU.device), StopRequest(), None)
        assert run is not None
        parts = Ahead(iter([part for step in step_batches(cfg)[:2] for part in step]), CPU.device)
        start = len(drawn)
        for _ in range(2):
            loop.train_step(run, parts)
        return drawn[start:]

    found = [number for seed in (0, 1) for rank in (0, 1) for number in draws(seed, rank)]
    assert len(set(found)) == len(found) == 16
    assert draws(1, 1) == found[-4:]
