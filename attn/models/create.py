"""One model = backbone x attention: timm builds the network, then attentions are placed in its slots."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from numbers import Integral
from typing import Any

import timm
import torch
from timm.models._features import FeatureGetterNet
from torch import nn
from torch.func import functional_call

from attn.attention import Attention, StageAttention
from attn.backbones import families, family_of
from attn.backbones.family import Family, Slot, Socket, adopt
from attn.config import groups
from attn.errors import reason
from attn.kernels import Kernels, fused_devices
from attn.models import spec
from attn.models.backbone_options import check_backbone_options, no_such_option
from attn.models.meta import AllocatedNorms
from attn.models.options import check_options, options_of


def create_model(
    backbone: str = "resnet50",
    attention: str | Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    *,
    features_only: bool = False,
    out_indices: tuple[int, ...] | None = None,
    kernels: Kernels = "reference",
    **timm_kwargs: Any,
) -> nn.Module:
    """Builds a timm network with attentions in its slots.

    Args:
        backbone: a name of `list_backbones()`, or any timm name of a supported family.
        attention: a name of `list_attentions()`, a mapping of slots as in `configs/attention/*.yaml`, or None for the
            network as timm ships it.
        num_classes: outputs of the classifier; 0 for none.
        features_only: return timm's `FeatureGetterNet`, which returns a list of feature maps.
        out_indices: which maps `features_only` returns; all by default.
        kernels: how channel gates are computed with the norms next to them, and AW's convolutions: `reference`, the modules one
            by one; `fused`, in few passes over the map (`attn.kernels`) if the gate allows it; `auto`, fused on devices that
            have it here.
            Parameter names and state dicts are the same, results are equal up to rounding.
        timm_kwargs: an option of a named attention by its name, as in `create_model("resnet18", "se", reduction=8)`; the
            others are passed to `timm.create_model` (`pretrained`, `in_chans`, `drop_path_rate`, `output_stride` ...).
            Weights are loaded before the attentions are placed.

    Returns:
        The timm model: without an attention its keys and outputs are timm's, else only the attentions' keys are new.

    Raises:
        ValueError: an unknown name or setting, or an invalid combination; the message says which and why.
    """
    if not isinstance(backbone, str):
        raise ValueError(f"backbone={backbone!r} must be a name, such as resnet50")
    if isinstance(num_classes, bool) or not isinstance(num_classes, Integral) or num_classes < 0:
        raise ValueError(f"num_classes={num_classes!r} must be an integer, 0 or more")
    num_classes = int(num_classes)
    if not isinstance(features_only, bool):
        raise ValueError(f"features_only={features_only!r} must be true or false")
    if out_indices is not None and not features_only:
        raise ValueError(f"out_indices={out_indices!r} belongs to features_only=True")
    wanted = spec.resolve_attention(attention)
    if isinstance(attention, str):
        wanted, timm_kwargs = _take_options(attention, wanted, timm_kwargs)
    label = f"backbone={backbone}" + (f" attention={attention}" if isinstance(attention, str) else "")
    try:
        model: Any = _timm_model(backbone, num_classes, timm_kwargs)
        family = family_of(model)
        if family is not None:
            adopt(model, family.classes)
            attach(model, family, wanted)
            set_kernels(model, kernels)
        elif wanted.filled:
            known = ", ".join(sorted(f.network.__name__ for f in families()))
            raise ValueError(f"its network class {type(model).__name__} has no slots; supported are {known}")
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error
    except (AttributeError, IndexError) as error:  # for example, fewer stages than the family has
        given = ", ".join(f"{key}={value!r}" for key, value in timm_kwargs.items() if key != "pretrained")
        if not given:
            raise
        raise ValueError(f"{label}: the options ({given}) make another kind of network: {reason(error)}") from error
    if features_only:
        try:
            return feature_maps(model, out_indices)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
    return model


def feature_maps(model: Any, out_indices: tuple[int, ...] | None = None) -> FeatureGetterNet:
    """A model that returns the list of its feature maps.

    Args:
        model: of `create_model`.
        out_indices: which maps; all by default.

    Raises:
        ValueError: there is no such map.
    """
    maps = len(model.feature_info)
    chosen = tuple(range(maps)) if out_indices is None else out_indices
    if not (isinstance(chosen, (tuple, list)) and chosen and all(i in range(-maps, maps) for i in chosen)):
        raise ValueError(f"out_indices={out_indices!r} must be some of 0 to {maps - 1}, as in (1, 2)")
    return FeatureGetterNet(model, out_indices=chosen)


def _take_options(
    attention: str, wanted: spec.AttentionSpec, kwargs: dict[str, Any]
) -> tuple[spec.AttentionSpec, dict[str, Any]]:
    """Sets those options that belong to the attention; returns the attention and the other options.

    Raises:
        ValueError: several parts of the attention have the option.
    """
    rest: dict[str, Any] = {}
    for key, value in kwargs.items():
        owners = [
            (slot, path, part)
            for slot, filled in wanted.filled.items()
            for path, part in _parts(filled, slot)
            if key in options_of(part.func)  # type: ignore[arg-type]
        ]
        if len(owners) > 1:
            places = " and ".join(path for _, path, _ in owners)
            raise ValueError(
                f"attention={attention}: {key}={value!r} is an option of {places}: give a mapping of slots instead of the "
                f"name, as in configs/attention/{attention}.yaml"
            )
        if not owners:
            rest[key] = value
            continue
        slot, _, part = owners[0]
        wanted = replace(wanted, **{slot: _with_option(wanted.filled[slot], part, key, value)})
    return wanted, rest


def _parts(part: partial[Any], path: str) -> Iterator[tuple[str, partial[Any]]]:
    """An attention and the attentions that it contains, each with its path."""
    yield path, part
    for key, value in part.keywords.items():
        for i, child in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if isinstance(child, partial):
                yield from _parts(child, f"{path}.{key}" + (f".{i}" if isinstance(value, (list, tuple)) else ""))


def _with_option(node: Any, target: partial[Any], key: str, value: Any) -> Any:
    if isinstance(node, (list, tuple)):
        return [_with_option(child, target, key, value) for child in node]
    if not isinstance(node, partial):
        return node
    options = {name: _with_option(child, target, key, value) for name, child in node.keywords.items()}
    return partial(node.func, **(options | {key: value} if node is target else options))


def set_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Switches the fused form of the blocks on or off; see `create_model`.

    Raises:
        ValueError: an unknown choice, or `fused` where no device has the form.
    """
    devices = fused_devices(kernels)
    for module in model.modules():
        if hasattr(type(module), "fused_on"):
            module.fused_on = devices  # type: ignore[assignment]


def fused_blocks(model: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[int, int]:
    """How many blocks run fused for maps of a given device and type, and how many blocks can."""
    blocks: list[Any] = [module for module in model.modules() if hasattr(type(module), "fused_on")]
    return sum(block.runs_fused(device, dtype) for block in blocks), len(blocks)


def check_input(model: nn.Module, image_size: int, training: bool = False) -> None:
    """Runs a model on an image [1, 3, S, S] on the meta device, which checks shapes and computes no values.

    Args:
        model: not changed.
        image_size: S, in pixels.
        training: run in training mode, where a norm may need more than one value per channel.

    Raises:
        ValueError: the model cannot take images of this size (Swin has a fixed size; others reduce a small image to
            nothing), or a single image.
    """
    before = model.training
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        with torch.no_grad(), AllocatedNorms():
            shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
            functional_call(model.train(training), shapes, (torch.empty(1, 3, image_size, image_size, device="meta"),))
    except Exception as error:  # whatever the network's own code raises at such a size
        if "meta" not in str(error).lower():  # else an attention does not support the meta device
            if isinstance(error, (AttributeError, TypeError, KeyError)):  # not caused by the image size
                raise ValueError(f"cannot run with these options: {reason(error)}") from error
            raise ValueError(f"cannot take images of {image_size} pixels: {reason(error)}") from error
    finally:
        model.train(before)


def _timm_model(name: str, num_classes: int, kwargs: dict[str, Any]) -> nn.Module:
    families()  # registers the networks that timm lacks
    if not timm.is_model(name):
        raise ValueError(groups.unknown("backbone", name, list_backbones()) + ", or any timm name of their families")
    check_backbone_options(name, kwargs)
    given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items() if key != "pretrained")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # such a network is rejected later
            with _without_retries():
                return timm.create_model(name, num_classes=num_classes, **kwargs)
    except MemoryError:
        raise ValueError(f"the network does not fit into memory ({given})") from None
    except Exception as error:  # timm checks few options: a wrong one fails where it is first used
        if kwargs.get("pretrained") and isinstance(error, (RuntimeError, OSError)):
            raise ValueError(f"pretrained=True: timm cannot get the weights: {reason(error)}") from None
        if not given:
            raise ValueError(f"timm cannot build it: {reason(error)}") from None
        stranger = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if stranger is not None and stranger[1] in kwargs:
            raise ValueError(no_such_option(name, stranger[1])) from None
        raise ValueError(f"timm refuses an option ({given}): {reason(error)}") from None


@contextmanager
def _without_retries() -> Iterator[None]:
    """While entered, the hub's client does not report each of a dozen attempts; if all fail, the error says so."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def attach(model: nn.Module, family: Family, wanted: spec.AttentionSpec) -> None:
    """Fills the slots of an adopted model. All sockets are found before any is filled: their widths are the backbone's own.

    Raises:
        ValueError: the family lacks the slot or setting, or the attention rejects a site.
    """
    network = family.network.__name__
    if wanted.sites not in ("all", "native"):
        raise ValueError(f"sites={wanted.sites!r}; choose from all, native")
    position = _choice("position", wanted.position, family.block_positions, family)
    convs = _choice("convs", wanted.convs, family.conv_kinds, family) if family.conv_kinds else ""
    if wanted.conv is not None and not convs:
        raise ValueError(f"{network} has no convolution to replace (conv slot)")
    where: dict[Slot, str] = {"conv": convs, "block": position, "stage": ""}
    sockets = {slot: list(family.sockets(model, slot, where[slot])) for slot in where if slot in wanted.filled}
    if "block" in sockets and wanted.sites == "native":
        sockets["block"] = [socket for socket in sockets["block"] if socket.site.native]
        if not sockets["block"]:
            raise ValueError(f"{network} has no attention of its own (sites=native)")
    for slot in sockets:
        _fill(sockets[slot], network, slot, wanted.filled[slot])


def _choice(key: str, value: str | None, choices: tuple[str, ...], family: Family) -> str:
    if value is not None and value not in choices:
        raise ValueError(f"{key}={value!r}; {family.network.__name__} has {', '.join(choices) or 'none'}")
    return choices[0] if value is None else value


def _fill(sockets: list[Socket], network: str, slot: Slot, attention: partial[Attention]) -> None:
    if not sockets:
        raise ValueError(f"{network} offers no site in the {slot} slot")
    cls: type[Attention] = attention.func  # type: ignore[assignment]
    check_options(cls, attention.keywords)
    try:
        placed = cls.place([socket.site for socket in sockets], **attention.keywords)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} cannot be built: {error}") from error
    if all(module is None for module in placed):
        raise ValueError(f"{cls.__name__} fits no site of {network} in the {slot} slot")
    for socket, module in zip(sockets, placed, strict=True):
        if module is None:
            if socket.leave is not None:
                socket.leave()
            continue
        if slot == "stage":
            socket.owner.add_module(socket.name, StageAttention(module))
            continue
        if socket.make_room is not None:
            socket.make_room()
        # timm stores an absent module as a plain attribute, which would hide a registered one.
        socket.owner.__dict__.pop(socket.name, None)
        setattr(socket.owner, socket.name, module)
        if module.takes_norm_act:
            if not socket.norm_act:
                raise ValueError(
                    f"{cls.__name__} brings its own norm and activation, but those of this block cannot be removed"
                )
            for name in socket.norm_act:
                setattr(socket.owner, name, nn.Identity())


def list_attentions(pattern: str = "*") -> list[str]:
    """Names of the attentions, `configs/attention/*.yaml`, that match a pattern such as `dca_*`.

    Raises:
        ValueError: the pattern is no string.
    """
    return _matching("attention", pattern)


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the backbones with a config that match a pattern such as `resnet*`.

    Any other timm name of a supported family works too.

    Raises:
        ValueError: the pattern is no string.
    """
    return _matching("backbone", pattern)


def _matching(group: str, pattern: str) -> list[str]:
    if not isinstance(pattern, str):
        raise ValueError(f"pattern={pattern!r} must be a string, such as 'resnet*' or 'dca_*'")
    return [name for name in groups.names(group) if fnmatchcase(name, pattern)]


def set_last_norm(model: nn.Module, zero: bool) -> None:
    """Sets the weight of the last norm of every residual branch to 0 (timm's default for ResNets) or to 1 (the authors').

    Blocks without this initialisation in timm are not changed.
    """
    for block in model.modules():
        if not hasattr(block, "zero_init_last") or isinstance(block.zero_init_last, bool):
            continue
        norm = getattr(block, "bn3", None) or getattr(block, "bn2", None)
        if norm is not None and getattr(norm, "weight", None) is not None:
            nn.init.constant_(norm.weight, 0.0 if zero else 1.0)
