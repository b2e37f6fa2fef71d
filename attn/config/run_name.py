"""The folder of a command's run: runs with different results never share one, and the same command finds its run again.

`run_dir` in configs/train.yaml calls the resolver `run_variant`, which is registered here. It is resolved while Hydra
composes, so that `hydra.compose("train")` gives what the command line does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf

from attn.config.groups import GROUPS

# What may differ when a run is continued: none of it changes what is computed from finite values and readable images, up to
# the rounding of another device.
MAY_DIFFER_ON_RESUME = {
    "run_dir",
    "resume",
    "force",
    "device",
    "channels_last",
    "compile",
    "grad_checkpointing",
    "deterministic",
    "nonfinite",
    "max_skipped",
    "dist_timeout",
    "log_every",
}


MAY_DIFFER_ON_RESUME |= {"save_every_steps", "save_every_minutes", "save_error", "pretrained", "init", "attention_name"}


MAY_DIFFER_ON_RESUME |= {"data.root", "data.workers", "data.name", "data.on_error", "schedule.name"}


# A continued run no longer reads `pretrained`, but a run that started from other weights is another run. The rest is already
# in the folder's name.
UNNAMED = (MAY_DIFFER_ON_RESUME - {"pretrained", "init"}) | {"seed", "backbone.name"}


VARIANT = "${run_variant:}"


LIMIT = 120  # characters; file systems take 255 bytes for all of a name


def variant(composed: Mapping[str, Any], plain: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """What a run's folder name adds to backbone, attention, data and seed: `-quick-lr_0.1-block.reduction_8`, or nothing.

    Args:
        composed: the config, as plain containers; it needs to hold only the groups and keys that are compared here.
        plain: the same choices of the groups without any other override.
        choices: the names of the choices.

    Returns:
        The schedule where it is not the default, and each key that differs and changes the result, in alphabetical order. A
        string that is too long, or has characters that a folder's name should not have, ends with a hash of the whole.
    """
    from attn.config.parse import flatten  # which registers what is here

    parts: list[str] = []
    whole: list[str] = []
    exact = True
    for group in ("backbone", "data"):
        if (plain.get(group) or {}).get("name") != choices.get(group):  # a file of the user's own that kept another's name
            parts.append(str(choices.get(group)))
    if choices.get("schedule") != "default":
        parts.append(str(choices.get("schedule")))
    before, after = flatten(plain), flatten(composed)
    for key in sorted(before.keys() | after.keys()):
        if key not in UNNAMED and not key.startswith("logger.") and before.get(key) != after.get(key):
            group, _, rest = key.partition(".")
            # Keys of these groups are known and differ from each other; a backbone takes whatever timm does.
            name = rest if rest and group in ("attention", "data", "schedule") else key
            value, faithful = _text(after.get(key))
            parts.append(f"{name}_{value}")
            whole.append(f"{key}={after.get(key)!r}")
            exact = exact and faithful
    text = "-".join(parts)
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", "_", text)
    if not exact or safe != text or len(safe) > LIMIT:
        digest = hashlib.sha256(repr((parts, whole)).encode())
        safe = f"{safe[: LIMIT - 9].rstrip('-_.')}-{digest.hexdigest()[:8]}"
    return f"-{safe}" if safe else ""


def _text(value: Any) -> tuple[str, bool]:
    """A value in a folder's name, and whether no other value of its key reads the same."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value], True
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value)), True
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value)
        return "_".join(_text(item)[0] for item in value), len(value) > 1 and numbers
    # Not a string that reads as null, a number or a list, or as the end of one key and the beginning of another.
    read = re.fullmatch(r"null|true|false|[-+]?[0-9._e+-]*(inf|nan)?", str(value)) or {"-", "_"} <= set(str(value))
    return str(value), isinstance(value, (int, float)) or not read


def _run_variant(*, _root_: Container) -> str:
    assert isinstance(_root_, DictConfig)
    hydra = _root_.hydra if "hydra" in _root_ else HydraConfig.get()
    choices = {group: str(hydra.runtime.choices.get(group)) for group in GROUPS}
    chosen = [f"{group}={name}" for group, name in choices.items()]
    chosen += [f"hydra.searchpath={list(hydra.searchpath)}", "run_dir=plain"]
    plain = GlobalHydra.instance().config_loader().load_configuration("train", chosen, RunMode.RUN)
    return variant(_looked_at(_root_), _looked_at(plain), choices)


def _settle(*, _root_: Container) -> list[str]:
    """Writes down what only Hydra's own node tells: `compose` removes it, and in a notebook nothing else has it.

    In configs/train.yaml it is where Hydra looks last, in place of a list of environment variables; there are none.
    """
    assert isinstance(_root_, DictConfig)
    raw = OmegaConf.to_container(OmegaConf.masked_copy(_root_, ["attention_name", "run_dir"]), resolve=False)
    assert isinstance(raw, dict)
    if raw.get("attention_name") == "${chosen_attention:}":
        _root_.attention_name = _root_.hydra.runtime.choices.get("attention")
    if VARIANT in str(raw.get("run_dir")):
        _root_.run_dir = str(raw["run_dir"]).replace(VARIANT, _run_variant(_root_=_root_))
    return []


def _looked_at(root: Container) -> dict[str, Any]:
    """The keys that change a result, without those that would ask for `run_dir` again."""
    assert isinstance(root, DictConfig)
    keys = [str(key) for key in root if key not in UNNAMED and key not in ("hydra", "logger")]
    found = {key: root[key] for key in keys}
    return {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in found.items()}


OmegaConf.register_new_resolver("run_variant", _run_variant, replace=True)
OmegaConf.register_new_resolver("settled", _settle, replace=True)
