"""Runs a Hydra entry point so that a mistake in the command is answered by one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attn.config import groups, reference
from attn.config.parse import flatten
from attn.errors import UserError, is_out_of_memory, reason

PATHS = ("data.root", "run_dir", "resume", "init", "checkpoint", "output", "images", "out", "predictions")
SIZES = "schedule.batch_size, data.image_size or the options of the backbone"
SWEEPS = "runs"  # hydra.sweep.dir in configs/train.yaml and configs/eval.yaml
INTERRUPTED = "interrupted; there was nothing to save yet"
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch: with it, tracebacks are shown


def run(main: Callable[[], None], config_name: str, schema: type) -> None:
    """Calls a `hydra.main` function and exits with 2 and one line for a mistake in the command.

    Args:
        main: the decorated function.
        config_name: its primary config, to tell which keys exist.
        schema: the dataclass of its keys, for the help.
    """
    if os.environ.pop(FULL_ERROR, "").strip().lower() not in ("", "0", "false", "no", "off"):
        os.environ[FULL_ERROR] = "1"
        main()
        return
    sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
    os.environ[FULL_ERROR] = "1"  # else Hydra prints the errors itself and exits before we see them
    try:
        parsed = check_arguments(sys.argv[1:])
        sys.argv[1:] = options_first(sys.argv[1:], parsed.overrides)
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(reference.help_text(config_name, schema, _chosen(config_name, sys.argv[1:])))
            return
        with _without_sweep_file(parsed.overrides) if parsed.multirun else contextlib.nullcontext():
            main() if parsed.package is None else _show_part(main, parsed.package)
    except UserError as error:
        _fail(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error, config_name, sys.argv[1:]), UserError.exit_code)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, 130)
    except OSError as error:  # a folder of Hydra's own that cannot be written
        _fail(str(error), UserError.exit_code)
    except Exception as error:
        if any(frame.name == "run_job" for frame in traceback.extract_tb(error.__traceback__)):
            raise  # a fault of the program, not of the command
        _fail(f"cannot compose the config from {' '.join(sys.argv[1:])}: {reason(error)}", UserError.exit_code)
    finally:
        os.environ.pop(FULL_ERROR, None)


def _show_part(main: Callable[[], None], package: str) -> None:
    """Runs `--cfg ... --package PACKAGE`, where Hydra itself prints what is wrong and exits with 1.

    Raises:
        UserError: the config has no such part.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit:
        if "not found in config" not in said.getvalue():
            print(said.getvalue(), end="", file=sys.stderr)
            raise
        raise UserError(
            f"--package {package}: the config has no such part, or it is null; --cfg job without it shows all parts"
        ) from None
    print(said.getvalue(), end="", file=sys.stderr)


@contextmanager
def _without_sweep_file(overrides: list[str]) -> Iterator[None]:
    """Removes what Hydra writes down of a sweep: each run has a config of its own, and a command that is refused must leave nothing."""
    given = [value for key, _, value in (o.partition("=") for o in overrides) if key.lstrip("+") == "hydra.sweep.dir"]
    folder = Path(given[-1] if given else SWEEPS)
    there = folder.exists()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / "multirun.yaml").unlink(missing_ok=True)
            if not there and folder.exists() and not os.listdir(folder):
                folder.rmdir()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line for a `UserError`; to be used inside the Hydra function, which would print more.

    In a cell of a sweep the error goes up to Hydra, which goes on with the next one (attn/config/sweep.py).
    """
    try:
        yield
    except UserError as error:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, 130)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _fail(f"there is not enough memory for it ({reason(error)}): lower the sizes, such as {SIZES}", UserError.exit_code)


def quoted(argument: str) -> str:
    """An argument whose value is a path, quoted if it has characters that are special in Hydra's grammar."""
    key, sign, value = argument.partition("=")
    plain = not re.search(r"[~=(){}\[\] :%@&;!]", value) or value[:1] in "\"'[" or "${" in value or "," in value
    if not sign or plain or key.lstrip("+") not in PATHS:
        return argument
    return f"{key}=" + json.dumps(value, ensure_ascii=False)


def check_arguments(arguments: list[str]) -> argparse.Namespace:
    """Refuses arguments for which Hydra would print ten lines of usage or a traceback, or which it would ignore.

    Returns:
        Hydra's reading of them: options, and `overrides`.

    Raises:
        UserError: an unknown option, a group that is removed, or given null or a list, a key that is removed, an argument
            without a key, or a search path that does not exist.
    """
    parser = get_args_parser()
    parser.error = _refuse_option  # type: ignore[method-assign]
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.experimental_rerun:
        raise UserError("--experimental-rerun is not supported: the same command continues a run")
    for option in ("config_path", "config_dir"):
        folder = getattr(parsed, option)
        if folder is not None and not Path(folder).is_dir():
            raise UserError(f"--{option.replace('_', '-')} {folder}: no such folder")
    if parsed.multirun and (parsed.cfg or parsed.info):
        raise UserError("-m runs, --cfg and --info only show: use one of them")
    if (parsed.resolve or parsed.package) and not parsed.cfg:
        raise UserError("--resolve and --package belong to --cfg, as in --cfg job --resolve")
    if parsed.shell_completion and not any(o.startswith(("install=", "uninstall=", "query=")) for o in parsed.overrides):
        raise UserError("--shell-completion needs install=SHELL, uninstall=SHELL or query=SHELL")
    for argument in parsed.overrides:
        _check_override(argument)
    return parsed


def options_first(arguments: list[str], overrides: list[str]) -> list[str]:
    """The arguments with the options before all keys; Hydra refuses an option between two keys."""
    options, left = [], list(overrides)
    for argument in arguments:
        if argument in left:
            left.remove(argument)
        else:
            options.append(argument)
    return [*options, *overrides]


def _check_override(argument: str) -> None:
    key, _, value = argument.partition("=")
    group, top = key.lstrip("+~"), key.lstrip("+~").partition(".")[0]
    if not group.strip():
        raise UserError(f"{argument}: has no key; write key=value, as in attention=se")
    if group in groups.GROUPS:
        if key != group or value == "null" or value[:1] in "[{" or re.fullmatch(r"[-+]?[\d._]+", value):
            if value or key != group:  # an empty name is an unknown one
                raise UserError(f"{argument}: name one {group}, as in {group}=NAME: {', '.join(groups.names(group))}")
        elif any(part in ("..", "") for part in value.split("/")[:-1]):
            raise UserError(
                f"{argument}: is a name, not a path; --config-dir=FOLDER adds a folder of configs with {group}/NAME.yaml in it"
            )
    elif key.startswith("~") and top not in ("backbone", "attention", "hydra"):
        raise UserError(f"{argument}: a key is set and never removed, as in {group}=VALUE")
    if group == "hydra.searchpath":
        for folder in re.findall(r"file://([^,\]\s\"']+)", value):
            if not Path(folder).is_dir():
                raise UserError(f"{argument}: no such folder {folder}")


def _refuse_option(message: str) -> NoReturn:
    if not message.startswith("unrecognized"):
        raise UserError(message)
    raise UserError(f"{message}: keys are set without dashes, as in attention=se; --help lists the options")


def explain(error: Exception, config_name: str, arguments: list[str]) -> str:
    """One line for an error of composition: what is wrong, and what would be right."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, slash, name = error.missing_cfg_file.partition("/")
        if not slash:
            group, name = "", group
        if not group:
            return (
                f"unknown config {name!r}: no {name}.yaml in the folders of configs; --config-dir=FOLDER adds one, "
                "--config-path=FOLDER takes the place of attn's own"
            )
        parts = name.rpartition("/")  # Hydra's own groups are of two levels, as hydra/launcher
        group, name = (f"{group}/{parts[0]}", parts[2]) if parts[1] and group == "hydra" else (group, name)
        return groups.unknown(group, name, error.options or (groups.names(group) if group in groups.GROUPS else []))
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        return (
            f"cannot read the argument {error.override!r}: write key=value; a value with special characters is quoted "
            f"twice, as in '{key}=\"{value}\"'"
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be set, as in {error.full_key}=..."
    first = str(error).splitlines()[0]
    if isinstance(error, ConfigCompositionException):
        if first.startswith("Could not override '"):
            return _unknown_key(first.split("'")[1], config_name, arguments)
        if first.startswith("Ambiguous value for argument '"):
            return f"{first}: `train.py -m` runs one value after the other; a list is written [a,b], a string with a comma in quotes"
        if first.startswith("Could not append to config."):
            return f"{first} Write it without the +, which adds a key that is not there"
        if error.__cause__ is not None and first.startswith("Error merging override"):
            return f"{first}: {str(error.__cause__).splitlines()[0]}"
    return first


def _unknown_key(key: str, config_name: str, arguments: list[str]) -> str:
    if "@" in key or "/" in key:
        return f"unknown group {key!r}: choose from {', '.join(groups.GROUPS)}"
    swept = _swept(arguments)
    having = [choice for choice in swept if _has(_composed(config_name, [*arguments, *choice]), key)]
    lacking = [choice for choice in swept if choice not in having]
    if having and lacking:
        only, lack = (" or ".join(" ".join(choice) for choice in some[:5]) for some in (having, lacking))
        return (
            f"{key!r} is a key with {only} only, and the sweep has {lack} too: sweep those without it in a command of their "
            "own"
        )
    root = _composed(config_name, [*arguments, *(swept[0] if swept else ())])
    parts = key.split(".")
    path, node = _reached(root, parts)
    if not OmegaConf.is_dict(node):
        return f"unknown key {key!r}: {path[:-1]} is {'null' if node is None else node} here and has no keys"
    choices = [f"{path}{child!s}" for child in node]
    elsewhere = [full for full in flatten(OmegaConf.to_container(root)) if full.endswith(f".{key}")]
    if elsewhere:
        return f"unknown key {key!r}: did you mean {' or '.join(map(repr, elsewhere))}? choose from {', '.join(choices)}"
    line = groups.unknown("key", key, choices)
    if path and parts[0] in ("attention", "backbone"):  # the others have a schema
        line += f" (an option that is not listed is added by +{key}=...)"
    return line


def _chosen(config_name: str, arguments: list[str]) -> str:
    """The keys of the chosen backbone and attention as YAML, for the help; empty where the command has neither."""
    root = _composed(config_name, [argument for argument in arguments if not argument.startswith("-")])
    return "".join(OmegaConf.to_yaml(OmegaConf.create({g: root[g]})) for g in ("backbone", "attention") if g in root)


def _reached(root: DictConfig, parts: list[str]) -> tuple[str, Any]:
    """How far a key leads into a config: the path, with a dot after each part, and the value found there."""
    path, node = "", root
    for part in parts:
        if not OmegaConf.is_dict(node) or part not in node:
            break
        path, node = f"{path}{part}.", node[part]
    return path, node


def _has(root: DictConfig, key: str) -> bool:
    return _reached(root, key.split("."))[0] == f"{key}."


def _swept(arguments: list[str]) -> list[tuple[str, ...]]:
    """The combinations of the groups' choices that a sweep goes through; none if it sweeps no group."""
    given = [argument.partition("=") for argument in arguments]
    lists = [
        [f"{key}={name}" for name in value.split(",")] for key, _, value in given if key in groups.GROUPS and "," in value
    ]
    return list(itertools.product(*lists)) if lists else []


def _composed(config_name: str, arguments: list[str]) -> DictConfig:
    """The config with the chosen groups and no other argument; without them if one does not exist in this config."""
    GlobalHydra.instance().clear()
    chosen = [a for a in arguments if a.partition("=")[0] in groups.GROUPS and "," not in a]
    with initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
        try:
            return compose(config_name, overrides=chosen)
        except HydraException:
            return compose(config_name)


def _fail(message: str, code: int) -> NoReturn:
    line = f"error: {' '.join(message.split())}"
    tell_launcher(line)
    if not _is_another_rank():
        print(line, file=sys.stderr)
    sys.exit(code)


def _is_another_rank() -> bool:
    """Whether the first rank prints the same line. No if the launcher's environment is wrong: then every rank prints it."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return rank.isdecimal() and world.isdecimal() and 0 < int(rank) < int(world)


def tell_launcher(line: str) -> None:
    """Writes the line where torchrun looks for it, so that torchrun's own report, which comes last, ends with it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        told = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": told}))
