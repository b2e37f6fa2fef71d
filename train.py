"""Trains a backbone with an attention: `python train.py attention=ba backbone=resnet50 data.root=/data/imagenet`.

`python train.py --help` lists all groups and keys; `torchrun --nproc-per-node=8 train.py ...` trains on many GPUs.
"""

import os

import hydra
from omegaconf import DictConfig

from attn import console
from attn.config import command_line, parse
from attn.data.root import check_place
from attn.errors import as_user_errors


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    with command_line.one_line_errors():
        parsed = parse.parse(composed)
        with as_user_errors():
            check_place(parsed.data)
        if os.environ.get("RANK", "0") == "0":
            console.say(f"{parsed.backbone['name']} + {parsed.attention_name} on {parsed.data.name}: {parsed.run_dir}")
        from attn.training import loop  # torch and timm take seconds to import; --help and --cfg do without them

        loop.train(parsed)


if __name__ == "__main__":
    command_line.run(main, "train")
