"""What `train.py` and `test.py` share: the command line of MMDetection's tools, and one line for every mistake in it."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn

from mmengine.config import Config, DictAction
from mmengine.logging import print_log

from attn.config.command_line import tell_launcher
from attn.config.groups import unknown
from attn.errors import UserError, reason
from detection import operators
from detection.weights import read_detector

CONFIGS = Path(__file__).resolve().parent / "configs"


def parser(description: str) -> argparse.ArgumentParser:
    """The options that training and testing have in common, named as in MMDetection's tools."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.error = _refuse  # type: ignore[method-assign]
    made.add_argument("config", help="path of a config, or a name in detection/configs such as ba_net_faster_rcnn")
    made.add_argument("--work-dir", help="where logs and checkpoints go; by default work_dirs/ and the config's name")
    made.add_argument(
        "--cfg-options",
        nargs="+",
        action=Overrides,
        default={},
        metavar="KEY=VALUE",
        help="overrides of the config, such as model.backbone.attention=ba",
    )
    made.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        help="how the ranks are started (default: pytorch under torchrun, else none)",
    )
    made.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return made


class Overrides(DictAction):
    """MMEngine's KEY=VALUE; any other argument is an error in one line."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            if any(not value.partition("=")[0] for value in values):
                raise ValueError("a key is missing")
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, IndexError, AssertionError) as error:
            raise UserError(f"{option_string} {' '.join(values)}: write KEY=VALUE ({reason(error)})") from None


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; see --help")


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a `UserError` ends the process with one line and its exit code, on rank 0 only."""
    try:
        main()
    except UserError as error:
        line, code = f"error: {' '.join(str(error).split())}", error.exit_code
    except KeyboardInterrupt:
        line, code = "error: interrupted; --resume continues from the last checkpoint in the work directory", 130
    else:
        return
    tell_launcher(line)
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
    sys.exit(code)


def load(args: argparse.Namespace) -> Config:
    """The config of a command: file, overrides, launcher and work directory.

    Raises:
        UserError: the file does not exist, or an override does not fit it.
    """
    path = find(args.config)
    try:
        cfg = Config.fromfile(str(path))
    except Exception as error:  # a config is a program: anything may come
        raise UserError(f"config {path}: {type(error).__name__}: {error}") from error
    base = names(cfg)
    merge(cfg, args.cfg_options)
    # As MMDetection's tools do, for what else reads this variable.
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg.launcher = args.launcher or ("pytorch" if "TORCHELASTIC_RUN_ID" in os.environ else "none")
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        # Two pairings of one recipe must not share a directory.
        changed = [new for new, old in zip(names(cfg), base, strict=True) if new != old]
        cfg.work_dir = str(Path("work_dirs") / "-".join([path.stem, *changed]))
    _check_writable(cfg.work_dir)
    return cfg


def _check_writable(work_dir: Any) -> None:
    """Refuses a work directory before anything is built.

    Raises:
        UserError: it is not the path of a folder, or cannot be written.
    """
    if not isinstance(work_dir, str) or not work_dir:
        raise UserError(f"work_dir={work_dir!r}: must be the path of a folder")
    existing = Path(work_dir).absolute()
    while not (existing.exists() or existing.is_symlink()):
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError:
        raise UserError(
            f"work_dir={work_dir} cannot be written ({existing} is no folder that allows it): choose another --work-dir"
        ) from None


def find(config: str) -> Path:
    """The file of a config, given as a path or as a name in `detection/configs` or its `rows`.

    Raises:
        UserError: there is none; proposes the nearest names.
    """
    candidates = [Path(config), *(folder / f"{config}.py" for folder in (CONFIGS, CONFIGS / "rows"))]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(path.stem for folder in (CONFIGS, CONFIGS / "rows") for path in folder.glob("*.py"))
    raise UserError(unknown("config", Path(config).stem, known))


def merge(cfg: Config, options: Mapping[str, Any]) -> None:
    """Applies overrides.

    Raises:
        UserError: an override does not fit the config.
    """
    # MMEngine does not support `X=None X.y=...`, which replaces X by a new mapping.
    anew = [key for key, value in options.items() if value is None and any(k.startswith(f"{key}.") for k in options)]
    cfg.merge_from_dict(dict.fromkeys(anew))
    options = {k: v for k, v in options.items() if k not in anew} | {f"{key}._delete_": True for key in anew}
    name = "model.backbone.attention"
    if any(key.startswith(f"{name}.") for key in options) and isinstance(_part(cfg, "backbone").get("attention"), str):
        raise UserError(
            f"{name} is the name {cfg.model.backbone.attention!r} in the config and has no keys: give a whole mapping, as"
            f" {name}=None {name}.block._target_=attn.modules.se.SE {name}.block.bias=False"
        )
    for key, value in options.items():
        _check_option(cfg, key, value)
    try:
        cfg.merge_from_dict(dict(options))
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        raise UserError(f"--cfg-options: {error}") from error


# What the runner or MMDetection reads at the top of a config, beside the arguments of the runner.
READ = {
    "runner_type",
    "custom_imports",
    "auto_scale_lr",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "compile",
    "sync_bn",
}


def _check_option(cfg: Config, key: str, value: Any) -> None:
    """Refuses an override that would fail late, with a message of Python's, or change nothing.

    Raises:
        UserError: names the override and what was expected.
    """
    from mmengine.runner import Runner

    line = f"--cfg-options {key}={value}"
    top, read = key.partition(".")[0], {*inspect.signature(Runner.__init__).parameters, *READ} - {"self", "cfg"}
    if top not in read:
        if top in cfg:
            raise UserError(
                f"{line}: changes nothing, because {top} is a variable of the config file: set the keys that it is used for, such as "
                "train_dataloader.dataset.data_root"
            )
        raise UserError(f"{line}: {unknown('key', top, sorted(read))}")
    old: Any = cfg._cfg_dict
    for part in key.split("."):
        if isinstance(old, (list, tuple)) and part.isdecimal() and int(part) < len(old):
            old = old[int(part)]
        else:
            old = old.get(part) if isinstance(old, Mapping) else None
    if value is None or old is None:
        return
    if isinstance(old, Mapping) and not isinstance(value, Mapping):
        raise UserError(f"{line}: must be a mapping; set one of its keys, as in {key}.{next(iter(old), 'KEY')}=...")
    if isinstance(old, (list, tuple)) and not isinstance(value, (list, tuple, Mapping)):
        raise UserError(f"{line}: must be a list, as in {key}=[...]")
    if isinstance(old, bool) and not isinstance(value, bool):
        raise UserError(f"{line}: must be True or False")
    if isinstance(old, (int, float)) and not isinstance(old, bool) and not isinstance(value, (int, float)):
        raise UserError(f"{line}: must be a number")
    if key in ("train_cfg.max_epochs", "train_cfg.val_interval", "train_cfg.max_iters") and value < 1:
        raise UserError(f"{line}: must be 1 or more")


def names(cfg: Mapping[str, Any]) -> list[str]:
    """What tells pairings of one recipe apart: backbone, attention, attention of the pyramid."""
    backbone, neck = (_part(cfg, part) for part in ("backbone", "neck"))
    parts = [backbone.get("backbone"), backbone.get("attention"), neck.get("attention")]
    return [part if isinstance(part, str) else "none" if part is None else "custom" for part in parts]


def pretrained(cfg: Mapping[str, Any]) -> str | None:
    """The checkpoint that the backbone starts from."""
    return (_part(cfg, "backbone").get("init_cfg") or {}).get("checkpoint")


def _part(cfg: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the model, empty where there is none or it is a list."""
    model = cfg.get("model")
    part = model.get(name) if isinstance(model, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def build_runner(cfg: Config, task: Literal["train", "test"]) -> Any:
    """The runner of a config, with all that the task needs: detector, data, optimizer.

    Raises:
        UserError: backbone, attention or another part does not exist, does not fit, or needs a package.
    """
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    if not isinstance(cfg.get("load_from"), (str, NoneType)):
        raise UserError(f"load_from={cfg.load_from!r}: must be the path of a checkpoint")
    if cfg.get("load_from") and "://" not in cfg.load_from:
        read_detector(cfg.load_from)  # before minutes are spent on the data
    try:
        runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
        if task == "train":
            runner._train_loop = runner.train_loop
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        else:
            runner._test_loop = runner.test_loop
    except UserError:
        raise
    except Exception as error:  # a config holds classes of many packages, whose constructors raise anything
        text = error.args[0] if isinstance(error, KeyError) and error.args else reason(error)
        text = text if " " in str(text) else f"{type(error).__name__} {text}"
        raise UserError(f"config {cfg.filename}: {text}") from error
    print_log(operators.in_use(), "current")
    return runner
