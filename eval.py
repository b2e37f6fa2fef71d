"""Evaluates a checkpoint of train.py: `python eval.py checkpoint=runs/resnet50-ba-digits-quick/seed0/best.pt`.

The model and the data are those of the checkpoint's own config; `data=...` and `data.KEY=...` override the latter.
"""

import hydra
from omegaconf import DictConfig

from attn.config import command_line


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(composed: DictConfig) -> None:
    with command_line.one_line_errors():
        from attn.evaluation import job  # torch and timm take seconds to import; --help and --cfg do without them

        job.run(job.Request.parse(composed))


if __name__ == "__main__":
    command_line.run(main, "eval")
