"""Trains every printed pairing for two steps, under torchrun: `torchrun --nproc-per-node=2 tests/two_ranks.py SHARE SHARES`.

Prints a line of JSON with the number of pairings and what failed. Gradients are not sent: which of them DistributedDataParallel waits for is what matters,
and it is decided before.
"""

import json
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attn import create_model, tables
from attn.models.auxiliary import extra_loss
from attn.models.create import check_input
from attn.models.unused import ignore_unused

SIZES = (32, 64, 224)  # pixels; the first that a network takes
STEPS = 2


def pairings() -> list[tuple[str, tables.Build]]:
    """The distinct networks of all printed commands, with the first row of each."""
    found: dict[str, tuple[str, tables.Build]] = {}
    for row in tables.with_alternatives((*tables.load_rows(), *tables.load_computed())):
        if row.build is not None and row.build.detector is None:
            key = json.dumps([row.build.mapping("backbone"), row.build.mapping("attention"), row.build.data])
            found.setdefault(key, (row.id, row.build))
    return list(found.values())


def loss(model: nn.Module, net: nn.Module, size: int, device: torch.device) -> Tensor:
    """The training loss of two images; `net` is the model, or DDP around it."""
    images, targets = torch.randn(2, 3, size, size, device=device), torch.zeros(2, dtype=torch.long, device=device)
    logits = net(images)
    return F.cross_entropy(logits, targets) + extra_loss(model, images, targets, logits)


def smallest(model: nn.Module) -> int:
    for size in SIZES[:-1]:
        try:
            check_input(model, size)
        except ValueError:
            continue
        return size
    return SIZES[-1]


def train(build: tables.Build) -> None:
    """Two steps, as `attn.training` take them."""
    torch.manual_seed(0)
    backbone = build.mapping("backbone")
    model = create_model(backbone.pop("name"), build.mapping("attention"), 10, **backbone)
    size = smallest(model)
    ignore_unused(model, lambda twin, device: loss(twin, twin, size, device))
    net = DistributedDataParallel(model.train(), init_sync=False)
    net.register_comm_hook(None, keep)
    for _ in range(STEPS):
        loss(model, net, size, torch.device("cpu")).backward()


def keep(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A hook of DDP that sends nothing."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def main() -> None:
    share, shares = map(int, sys.argv[1:])
    dist.init_process_group("gloo")
    chosen, failed = pairings()[share::shares], {}
    for name, build in chosen:
        try:
            train(build)
        except Exception as error:
            failed[name] = str(error).splitlines()[0]
    if dist.get_rank() == 0:
        print(json.dumps({"pairings": len(chosen), "failed": failed}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
