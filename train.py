"""Trains a backbone with an attention: `python train.py attention=ba backbone=resnet50 data.root=/data/imagenet`.

`python train.py --help` lists all groups and keys; `torchrun --nproc-per-node=8 train.py ...` trains on many GPUs.
"""

import hydra
from omegaconf import DictConfig

from attn.config import command_line, parse


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    with command_line.one_line_errors():
        parsed = parse.parse(composed)
        from attn.training import loop  # torch and timm take seconds to import; --help and --cfg do without them

        loop.train(parsed)


if __name__ == "__main__":
    command_line.run(main, "train")
