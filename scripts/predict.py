"""Classifies images of your own: `python scripts/predict.py checkpoint=best.pt images=photos [topk=5] [out=predictions.csv]`.

`images` is a folder, a pattern such as 'photos/*.jpg', or a file. Files that cannot be read are named and left out; if none can be
read, the exit code is 1. `--help` lists all keys.
"""

import sys

import hydra
from omegaconf import DictConfig

from attn.config import command_line, groups
from attn.config.prediction import Request


@hydra.main(version_base="1.3", config_path=str(groups.config_dir()), config_name="predict")
def _predict(composed: DictConfig) -> None:
    with command_line.one_line_errors():
        from attn.evaluation import predict  # torch and timm take seconds to import; --help and --cfg do without them

        code = predict.run(Request.parse(composed))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    command_line.run(_predict, "predict", Request)
