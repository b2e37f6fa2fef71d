"""Writes a trained network for use without this package: `python scripts/export.py checkpoint=best.pt format=onnx`.

`python scripts/export.py --help` lists the formats and keys; docs/export.md has a consumer for each format.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from attn.config import command_line, groups
from attn.config.export import Request


@hydra.main(version_base="1.3", config_path=str(groups.config_dir()), config_name="export")
def export(composed: DictConfig) -> None:
    with command_line.one_line_errors():
        request = Request.parse(composed)
        from attn.export import job  # torch and timm take seconds to import; --help and --cfg do without them

        job.run(request)


if __name__ == "__main__":
    command_line.run(export, "export", Request)
