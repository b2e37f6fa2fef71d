"""From a checkpoint of the papers' authors, timm or torchvision to one of this project, and from any of these to a start of fine-tuning."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from attn import rng
from attn.config import command_line, groups, parse
from attn.config.schema import Config
from attn.errors import UserError, as_user_errors, reason
from attn.models import convert
from attn.models.convert.protocol import Architecture, differences, same
from attn.runs import checkpoint, folder, load
from attn.runs.checkpoint import BadCheckpoint
from attn.runs.files import sync_folder
from attn.runs.outputs import expect_place

OWN = "attn"  # as a source: a checkpoint of this project
WRAPPERS = ("state_dict", "model")  # where a training script puts the weights
PREFIX = re.compile(r"^(?:module\.1\.|module\.|_orig_mod\.)")  # DataParallel (around half precision), torch.compile
COUNTER = ".num_batches_tracked"  # which files older than torch 0.4.1 lack


@dataclass(frozen=True)
class Report:
    """What became of the tensors.

    Attributes:
        matched: our names of those that were taken from the file.
        new: those of the model that the file has not; they are as initialised.
        missing: those of the file that the model has not.
        reshaped: those that both have, in another shape; they are as initialised.
        dropped: the source's names of those that take no part in its network.
    """

    matched: list[str]
    new: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report to print."""
        kinds = {
            "matched": self.matched,
            "new, as initialised": self.new,
            "missing from the model": self.missing,
            "of another shape, as initialised": self.reshaped,
            "without a part in the network, dropped": self.dropped,
        }
        lines = [f"{len(self.matched)} tensors matched"]
        for kind, names in list(kinds.items())[1:]:
            if names:
                lines.append(f"{len(names)} {kind}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}")
        return lines


def convert_file(source: str, arch: str, path: Path, out: Path, start: Sequence[str] = ()) -> Report:
    """Writes a checkpoint with the weights of a file, which must be those of the network and no others.

    Args:
        source: a name of `attn.models.convert.CHOICES`.
        arch: name of the network there.
        path: the file: a state dict, bare or as `state_dict` or `model` of a training script; or safetensors.
        out: the checkpoint to write; must not exist.
        start: overrides as of train.py, for a start of fine-tuning: the checkpoint's model is that of the network with
            these, and takes the tensors that it shares with it by name and shape.

    Raises:
        UserError: an unknown name, a file that is damaged, of another network or partial, overrides that do not fit, or
            `out` exists.
    """
    expect_new(out)
    with as_user_errors():
        architecture = convert.find(source, arch)
    own_config = config_of(architecture, arch)
    config = config_of(architecture, arch, start) if start else own_config
    content = read_foreign(path)
    what = f"{path} is a checkpoint of this project, which --source {OWN} takes, and " if content.own else f"{path} is "
    state, dropped = translate(content.tensors, architecture, own_config, f"{what}not {arch} of {source}")
    report = Report(list(state), dropped=dropped)
    if start:
        state, report = begin(config, state, dropped)
    origin = {"source": source, "arch": arch, "file": path.name, "sha256": digest(path), **content.said}
    if start:
        origin |= {"start": list(start), "new": report.new, "reshaped": report.reshaped, "missing": report.missing}
    save(out, {"model": state, "config": parse.to_dict(config), "origin": origin})
    return report


def convert_own(path: str | Path, out: Path, start: Sequence[str], trust: Sequence[str] = ()) -> Report:
    """Writes a start of fine-tuning with the weights of a checkpoint of this project, averaged ones where it holds them.

    Args:
        path: what `attn.load` takes.
        out: the checkpoint to write; must not exist.
        start: overrides as of train.py, at least one. Backbone, attention and data that they do not choose are the checkpoint's.
        trust: modules of your own whose attentions the checkpoint may name.

    Raises:
        UserError: there are no overrides, they do not fit, the checkpoint is damaged, or `out` exists.
    """
    expect_new(out)
    if not start:
        raise UserError(f"{path} is a checkpoint already: say what the new model has, as in data=cifar100")
    content = folder.read(path)
    own = load.trusted(load.load_config(content, path), trust, f"checkpoint {path}")
    options = dict(own.backbone)
    network = Architecture(str(options.pop("name")), "none", same, own.attention, asdict(own.data), options)
    config = config_of(network, out.stem, start)
    if not any(override.startswith("attention=") for override in start):
        config = replace(config, attention_name=own.attention_name)
    weights = load.pick_weights(content, None, path)
    load.expect_finite(weights, path)
    state, report = begin(config, weights, [])
    origin = {"source": OWN, "file": Path(path).name, "start": list(start)}
    origin |= {"new": report.new, "reshaped": report.reshaped, "missing": report.missing}
    save(out, {"model": state, "config": parse.to_dict(config), "origin": origin})
    return report


def expect_new(out: Path) -> None:
    """Checks, before any work, that a checkpoint can be written and replaces nothing.

    Raises:
        UserError: the file is there, its folder is none, or its name is that of an override.
    """
    key, sign, _ = out.name.partition("=")
    if sign and out.name == str(out) and (key in groups.GROUPS or "." in key):
        raise UserError(f"OUT={out} looks like an override: name the checkpoint to write before it, as in IN OUT {out}")
    if out.exists():
        raise UserError(f"{out} exists: remove it, or name another file")
    expect_place(out, "OUT=")


@dataclass(frozen=True)
class Foreign:
    """A file from elsewhere.

    Attributes:
        tensors: by bare name.
        said: what it says of itself.
        own: whether it is a checkpoint of this project after all.
    """

    tensors: dict[str, Tensor]
    said: dict[str, Any]
    own: bool


def read_foreign(path: Path) -> Foreign:
    """Reads a file of weights without executing anything.

    Raises:
        BadCheckpoint: it is missing, damaged, holds code, or no weights.
    """
    content = _load(path)
    said = {key: content[key] for key in ("arch", "epoch") if isinstance(content.get(key), (str, int))}
    said = {f"file_{key}": value for key, value in said.items()}
    inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = {key: value for key, value in inner.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors or (inner is not content and len(tensors) != len(inner)):
        raise BadCheckpoint(f"{path} holds no weights: expected tensors by name, bare or under {' or '.join(WRAPPERS)}")
    while all(PREFIX.match(name) for name in tensors):
        longest = min((m[0] for name in tensors if (m := PREFIX.match(name))), key=len)
        tensors = {name.removeprefix(longest): value for name, value in tensors.items()}
    config = content.get("config")
    return Foreign(tensors, said, isinstance(config, Mapping) and "attention" in config)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(path)
            except SafetensorError as error:
                raise BadCheckpoint(f"{path} cannot be read (truncated, or no safetensors): {error}") from None
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not look at the sums
            if damaged is not None:
                raise BadCheckpoint(f"{path} is damaged: the sum of its part {damaged} is wrong")
        # What training scripts save beside the weights, and no more: their arguments, and an accuracy as a numpy scalar.
        plain: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")}]
        scalar: Any = np.float64(0).__reduce__()[0]
        plain += [scalar, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
        with torch.serialization.safe_globals(plain):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadCheckpoint(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadCheckpoint(f"{path} is a folder; name a file of weights") from None
    except pickle.UnpicklingError:
        raise BadCheckpoint(f"{path} is no file of weights, or holds more than tensors and plain data; refused") from None
    except BadCheckpoint:
        raise
    except Exception as error:  # torch's reader takes any bytes for a pickle
        raise BadCheckpoint(f"{path} cannot be read (truncated, or no file of weights): {reason(error)}") from None
    if not isinstance(content, Mapping):
        raise BadCheckpoint(f"{path} holds a {type(content).__name__}; expected tensors by name")
    return content


def translate(
    given: Mapping[str, Tensor], architecture: Architecture, config: Config, what: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of the network from the source's tensors, and the names of those that take no part.

    Raises:
        BadCheckpoint: the names or sizes are not those of the network; begins with `what`, and names those that differ.
    """
    with torch.device("meta"):
        model = load.build(config)
    own = model.state_dict()
    expected = architecture.tensors({key: tuple(tensor.shape) for key, tensor in own.items()})
    given = dict(given)
    counters = [name for name, _ in expected.values() if name.endswith(COUNTER)]
    if not any(name in given for name in counters):
        given |= {name: torch.tensor(0) for name in counters}
    dropped = [] if architecture.dropped is None else [k for k in given if re.fullmatch(architecture.dropped, k)]
    constants = {} if architecture.constants is None else architecture.constants(model)
    constants = {name: value for name, value in constants.items() if name in given}
    dropped += constants
    wrong = differences(
        {name: tuple(tensor.shape) for name, tensor in given.items()},
        dict(expected.values()) | {name: tuple(value.shape) for name, value in constants.items()},
        set(dropped).__contains__,
    )
    found = "; ".join(wrong)
    if found:
        raise BadCheckpoint(f"{what}: {found}")
    for name, value in constants.items():
        if not torch.allclose(given[name].to(value.dtype), value, rtol=1e-3, atol=1e-4):  # half precision passes
            raise BadCheckpoint(f"{what}: {name} has other values than this network, which would give another accuracy here")
    state = {}
    for key, (name, _) in expected.items():
        state[key] = given[name].detach().reshape(own[key].shape).to(own[key].dtype).clone()
    broken = checkpoint.non_finite(state)
    if broken is not None:
        raise BadCheckpoint(f"{what}, or damaged: {expected[broken][0]} holds a NaN or an infinity")
    return state, dropped


def begin(config: Config, given: Mapping[str, Tensor], dropped: list[str]) -> tuple[dict[str, Tensor], Report]:
    """A model as initialised, with those tensors of another that fit by name and shape.

    Raises:
        UserError: none fits.
    """
    rng.seed_everything(config.seed, "initialisation")
    state = load.build(config).state_dict()
    both = [key for key in state if key in given]
    matched = [key for key in both if state[key].shape == given[key].shape]
    if not matched:
        raise UserError(f"backbone.name={config.backbone['name']} shares no tensor with the file, by name and shape")
    taken = set(matched)
    report = Report(
        matched=matched,
        new=[key for key in state if key not in given],
        missing=[key for key in given if key not in state],
        reshaped=[key for key in both if key not in taken],
        dropped=dropped,
    )
    return {**state, **{key: given[key] for key in matched}}, report


def config_of(architecture: Architecture, arch: str, overrides: Sequence[str] = ()) -> Config:
    """The config of train.py with which a network is built, on ImageNet unless the overrides say otherwise.

    Raises:
        UserError: the overrides are mistyped or out of range.
    """
    chosen = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    listed = architecture.backbone in groups.names("backbone")
    attention = chosen.get("attention", architecture.attention)
    given = [f"backbone={architecture.backbone}"] if listed else [f"backbone.name={architecture.backbone}"]
    given = [] if "backbone" in chosen else given
    given += [] if "attention" in chosen else [f"attention={attention}"]
    given += [f"attention_name={attention}", f"run_dir=runs/{arch}", *overrides]
    GlobalHydra.instance().clear()
    try:
        command_line.check_arguments(list(overrides))
        with initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
            composed = hydra.compose("train", overrides=given)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(command_line.explain(error, "train", list(overrides))) from None
    sections: dict[str, Mapping[str, Any]] = {"data": architecture.data if "data" not in chosen else {}}
    sections["backbone"] = architecture.network if "backbone" not in chosen else {}
    sections["attention"] = architecture.settings if "attention" not in chosen else {}
    for section, settings in sections.items():
        for key, value in settings.items():
            if f"{section}.{key}" not in chosen:
                OmegaConf.update(composed, f"{section}.{key}", value, force_add=True)
    return parse.parse(composed)


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def save(out: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint that holds a model and no run; at every moment `out` is absent or whole.

    Raises:
        UserError: it cannot be written.
    """
    temporary = out.with_name(f"{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write({"format": checkpoint.FORMAT, "step": 0, **content, "versions": checkpoint.versions()}, temporary)
        os.replace(temporary, out)
        sync_folder(out.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
