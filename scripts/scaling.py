"""Images per second on 1, 2, 4 ... ranks, and what is lost by sharing: `python scripts/scaling.py --ranks 1,2,4,8 attention=ba`.

Every rank gets the same number of images whatever their number (weak scaling); efficiency is the speed per rank relative to the
first measurement. Images are made up (`data=fake`), so that neither disk nor decoding is measured. Overrides for train.py
follow the options.
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
    parser.add_argument("overrides", nargs="*", help="for train.py")
    options = parser.parse_args()
    print("ranks  images/s  per rank  efficiency", flush=True)
    reference = None
    for count in options.ranks:
        speed = measure(count, options.batch, options.steps, options.overrides)
        reference = reference or speed / count
        print(f"{count:5d}  {speed:8.1f}  {speed / count:8.1f}  {speed / count / reference:9.1%}", flush=True)


if __name__ == "__main__":
    scripts.run(main)
