"""Images per second on 1, 2, 4 ... ranks, and what is lost by sharing.

    python scripts/scaling.py --ranks 1,2,4,8 attention=ba

Every rank gets the same number of images whatever their number (weak scaling); efficiency is the speed per rank relative to
the first measurement. Images are made up (`data=fake`), so that neither disk nor decoding is measured. Overrides for
train.py follow the options. `--predict 8,64 --bandwidth 10` adds what the first measurement and the bytes of the
all-reduce predict for more ranks (docs/clusters.md).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from attn.config import scripts
from attn.config.scripts import positive
from attn.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def measure(ranks: int, batch: int, steps: int, overrides: list[str]) -> float:
    """Images per second over all ranks, in the second of two epochs: the first one warms up."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, images = Path(folder) / "run", ranks * batch * steps
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        settings = ["data=fake", f"data.samples={images}", f"schedule.batch_size={ranks * batch}", "schedule.epochs=2"]
        settings += ["logger=none", f"run_dir={run_dir}", *overrides]
        env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), **os.environ}
        done = subprocess.run(
            [*launcher, "train.py", *settings], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            raise UserError(lines[0].removeprefix("error: ") if lines else done.stderr)
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return float(rows[-1]["images_per_second"])


BUCKET = 25 * 2**20  # bytes of gradients that DDP sends at once


def predict(ranks: int, seconds: float, gradients: float, bandwidth: float) -> float:
    """The efficiency of data-parallel training, by the bytes that a ring all-reduce moves.

    Each rank sends and receives 2 (N - 1) / N times the gradients' bytes in a step. DDP does it bucket by bucket while the backward
    pass, taken as two thirds of a step, still computes; the last bucket, of the first layers, waits for its end.

    Args:
        ranks: N.
        seconds: of a step on one rank.
        gradients: their bytes; 4 for each parameter.
        bandwidth: bytes per second in each direction between two ranks.

    Returns:
        The step on one rank over the step on N ranks: 1 is perfect.
    """
    per_byte = 2 * (ranks - 1) / ranks / bandwidth
    last = min(gradients, BUCKET)
    step = seconds / 3 + max(seconds * 2 / 3, (gradients - last) * per_byte) + last * per_byte
    return seconds / step


def gradient_bytes(overrides: list[str]) -> int:
    """Bytes of the gradients of a model, which are float32 under autocast, too."""
    command = [sys.executable, "train.py", "data=fake", *overrides, "--cfg", "job", "--resolve"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.rstrip().removeprefix("error: "))
    import torch
    from omegaconf import OmegaConf

    from attn.config import parse
    from attn.runs import load

    with torch.device("meta"):
        model = load.build(parse.parse(OmegaConf.create(done.stdout)))
    return sum(4 * p.numel() for p in model.parameters() if p.requires_grad)


def counts(text: str) -> list[int]:
    """Numbers separated by commas."""
    return [positive(count) for count in text.split(",")]


def main() -> None:
    parser = scripts.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ranks", type=counts, default=[1, 2], help="numbers of ranks, the first is the reference (default 1,2)"
    )
    parser.add_argument("--batch", type=positive, default=32, help="images per rank and step (default 32)")
    parser.add_argument("--steps", type=positive, default=20, help="steps per measurement (default 20)")
    parser.add_argument("--predict", type=counts, default=[], help="numbers of ranks to predict, from the first measurement")
    parser.add_argument(
        "--bandwidth", type=float, default=10.0, help="GB/s in each direction between two ranks, for --predict (default 10)"
    )
    parser.add_argument("overrides", nargs="*", help="for train.py")
    options = parser.parse_args()
    if not options.bandwidth > 0:
        parser.error("--bandwidth must be greater than 0")
    gradients = gradient_bytes(options.overrides) if options.predict else 0
    reference = None
    for count in options.ranks:
        speed = measure(count, options.batch, options.steps, options.overrides)
        if reference is None:
            print("ranks  images/s  per rank  efficiency", flush=True)
            reference = speed / count
        print(f"{count:5d}  {speed:8.1f}  {speed / count:8.1f}  {speed / count / reference:9.1%}", flush=True)
    if options.predict and reference:
        print(f"predicted, for {gradients / 1e6:.1f} MB of gradients per step at {options.bandwidth:g} GB/s:")
        for count in options.predict:
            efficiency = predict(count, options.batch / reference, gradients, options.bandwidth * 1e9)
            print(f"{count:5d}  {count * reference * efficiency:8.1f}  {reference * efficiency:8.1f}  {efficiency:9.1%}")


if __name__ == "__main__":
    scripts.run(main)
