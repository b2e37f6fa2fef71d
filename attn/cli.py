"""Runs a Hydra entry point so that whatever a user mistypes is answered by one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from attn import registry
from attn.errors import UserError

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch: with it, tracebacks are shown


def run(main: Callable[[], None], config_name: str) -> None:
    """Calls a `hydra.main` function and exits with 2 and one line for a mistake in the command.

    Args:
        main: the decorated function.
        config_name: its primary config, to tell which keys exist.
    """
    if os.environ.get(FULL_ERROR):
        main()
        return
    os.environ[FULL_ERROR] = "1"  # else Hydra prints the errors itself and exits before we see them
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error, config_name, sys.argv[1:]), UserError.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from the last checkpoint", 130)
    finally:
        os.environ.pop(FULL_ERROR, None)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line for a `UserError`; to be used inside the Hydra function, which would print more."""
    try:
        yield
    except UserError as error:
        _fail(str(error), error.exit_code)


def explain(error: Exception, config_name: str, arguments: list[str]) -> str:
    """One line for an error of composition: what is wrong, and what would be right."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return registry.unknown(group or "config", name, error.options or [])
    if isinstance(error, OverrideParseException):
        return f"cannot read the argument {error.override!r}: write key=value, and quote a value with special characters"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be set, as in {error.full_key}=..."
    first = str(error).splitlines()[0]
    if isinstance(error, ConfigCompositionException) and first.startswith("Could not override '"):
        return _unknown_key(first.split("'")[1], config_name, arguments)
    return first


def _unknown_key(key: str, config_name: str, arguments: list[str]) -> str:
    groups = [a for a in arguments if a.partition("=")[0] in registry.GROUPS and "," not in a]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(registry.config_dir()), version_base="1.3"):
        node: DictConfig = compose(config_name, overrides=groups)
    if "@" in key or "/" in key:
        return f"unknown group {key!r}: choose from {', '.join(registry.GROUPS)}"
    path, parts = "", key.split(".")
    for part in parts:
        if not OmegaConf.is_dict(node) or part not in node:
            break
        path, node = f"{path}{part}.", node[part]
    if not OmegaConf.is_dict(node):
        return f"unknown key {key!r}: {path[:-1]} is {'null' if node is None else node} here and has no keys"
    choices = [f"{path}{child!s}" for child in node]
    return registry.unknown("key", key, choices) + f" (a key that is not listed is added by +{key}=...)"


def _fail(message: str, code: int) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
