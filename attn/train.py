"""The command `attn-train`, which is `train.py` in a checkout: trains a backbone with an attention.

`attn-train --help` lists all groups and keys; `torchrun --nproc-per-node=8 -m attn.train ...` trains on many GPUs.
"""

import os

import hydra
from omegaconf import DictConfig

from attn import console
from attn.config import command_line, groups, parse
from attn.config.schema import Config
from attn.data.root import check_place
from attn.errors import as_user_errors


@hydra.main(version_base="1.3", config_path=str(groups.config_dir()), config_name="train")
def _train(composed: DictConfig) -> None:
    with command_line.one_line_errors():
        parsed = parse.parse(composed)
        with as_user_errors():
            check_place(parsed.data)
        if os.environ.get("RANK", "0") == "0":
            console.say(f"{parsed.backbone['name']} + {parsed.attention_name} on {parsed.data.name}: {parsed.run_dir}")
        from attn.training import loop  # torch and timm take seconds to import; --help and --cfg do without them

        loop.train(parsed)


def main() -> None:
    """Trains as `sys.argv` says; a mistake there ends the process with one line and code 2."""
    command_line.run(_train, "train", Config)


if __name__ == "__main__":
    main()
