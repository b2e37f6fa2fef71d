"""Trains on the workers of a Ray cluster.

    python scripts/ray_train.py --workers 8 --gpu attention=ba run_dir=/shared/runs/ba

Ray places the workers and starts them again when a node dies; on each, attn's own training runs as it does under torchrun,
and continues from the last checkpoint of `run_dir`, which all nodes have to share.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from typing import Any

from attn.config import scripts
from attn.config.scripts import positive


def train(config: dict[str, Any]) -> None:
    """On each worker: the ranks agree on a port of the first one, and start train.py with the environment that Ray set."""
    import torch.distributed as dist

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = [probe.getsockname()[1]]
    dist.broadcast_object_list(port)
    environment = {**os.environ, "MASTER_PORT": str(port[0])}  # Ray's own process group keeps the other
    command = [sys.executable, "-m", "attn.train", *config["overrides"]]
    subprocess.run(command, env=environment, cwd=config["folder"], check=True)


def main() -> None:
    parser = scripts.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=positive, default=2, help="ranks in the whole cluster (default 2)")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each rank")
    parser.add_argument(
        "--failures", type=int, default=3, help="how often all ranks are started again after one has died (default 3)"
    )
    parser.add_argument("overrides", nargs="*", help="for train.py")
    options = parser.parse_args()
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError:
        sys.exit("error: this needs Ray: pip install 'attn[ray]'")
    trainer = TorchTrainer(
        train,
        train_loop_config={"overrides": options.overrides, "folder": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=options.failures)),
    )
    trainer.fit()


if __name__ == "__main__":
    scripts.run(main)
