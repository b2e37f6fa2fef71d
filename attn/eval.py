"""The command `attn-eval`, which is `eval.py` in a checkout: evaluates a checkpoint.

The model and the data are those of the checkpoint's own config; `data=...` and `data.KEY=...` override the latter.
"""

import hydra
from omegaconf import DictConfig

from attn.config import command_line, groups
from attn.config.evaluation import Request


@hydra.main(version_base="1.3", config_path=str(groups.config_dir()), config_name="eval")
def _evaluate(composed: DictConfig) -> None:
    with command_line.one_line_errors():
        from attn.evaluation import job  # torch and timm take seconds to import; --help and --cfg do without them

        job.run(Request.parse(composed))


def main() -> None:
    """Evaluates as `sys.argv` says; a mistake there ends the process with one line and code 2."""
    command_line.run(_evaluate, "eval", Request)


if __name__ == "__main__":
    main()
