"""Writes a packed copy of a data set, which data=packed reads.

    python scripts/pack.py /fast/imagenet data=imagenet data.root=/data/imagenet

By default it holds the original files: training gives the same bits, from few large files instead of many small ones. With
--side larger images are resized first, which saves most of the decoding. It can be interrupted; the same command continues.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from attn import console
from attn.config import command_line, parse, scripts
from attn.config.groups import config_dir
from attn.config.schema import Config
from attn.config.scripts import not_negative, positive
from attn.data.loader import most_workers
from attn.data.pack import Packing, pack
from attn.data.root import check_place
from attn.errors import UserError, as_user_errors


def main() -> int:
    parser = scripts.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the copy; each split becomes a folder in it")
    parser.add_argument("data", nargs="*", help="the data set, as for train.py: data=NAME data.KEY=VALUE ...")
    parser.add_argument("--side", type=positive, help="shorter side of larger images in pixels; default: the original files")
    parser.add_argument("--quality", type=positive, help="JPEG quality of resized images (default 90)")
    parser.add_argument("--split", choices=["both", "train", "val"], default="both", help="what to pack (default both)")
    parser.add_argument("--per-shard", type=positive, default=4096, help="images in a shard (default 4096)")
    parser.add_argument("--workers", type=not_negative, default=4, help="processes (default 4); 0: none but this one")
    options = parser.parse_intermixed_args()
    with as_user_errors():
        return run(options)


def run(options: argparse.Namespace) -> int:
    if options.quality is not None and options.side is None:
        raise UserError("--quality is for resized images: it needs --side")
    if (options.quality or 90) > 100:
        raise UserError(f"--quality {options.quality}: must be at most 100")
    if options.workers > most_workers():
        raise UserError(f"--workers {options.workers}: more than {most_workers()} only wait for each other here")
    cfg = composed(options.data)
    check_place(cfg.data)
    if cfg.data.source == "packed":
        raise UserError("data=packed is packed already: name the data set that it was made of")
    packing = Packing(options.side, options.quality or 90, options.per_shard)
    for train, split in ((True, cfg.data.train_split), (False, cfg.data.val_split)):
        if options.split not in ("both", "train" if train else "val"):
            continue
        folder = options.out / split

        def progress(shards, total, split=split):
            return tqdm(shards, split, total, unit="shard", disable=not sys.stderr.isatty())

        new = pack(cfg.data, train, folder, packing, options.workers, console.warn, progress)
        console.say(f"{folder}: {packing.name}, {'packed' if new else 'was there already'}")
    console.say(f"train with data=packed data.root={options.out} data.num_classes={cfg.data.num_classes}")
    return 0


def composed(overrides: list[str]) -> Config:
    """The config with the keys of `data`.

    Raises:
        UserError: something else is set, or cannot be composed.
    """
    for override in overrides:
        if not override.startswith(("data=", "data.", "+data.")):
            raise UserError(f"{override}: only data=NAME and data.KEY=VALUE are read here")
    quoted = [command_line.quoted(override) for override in overrides]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return parse.parse(compose("train", ["attention_name=none", "run_dir=none", *quoted]))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(command_line.explain(error, "train", quoted)) from None


if __name__ == "__main__":
    scripts.run(main)
