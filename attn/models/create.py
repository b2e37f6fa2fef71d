"""One model = backbone x attention: timm builds the network, then attentions are put into its slots in place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.models._features import FeatureGetterNet
from torch import nn
from torch.func import functional_call

from attn.attention import Attention, StageAttention
from attn.backbones import families, family_of
from attn.backbones.family import Family, Place, Slot, adopt
from attn.config import groups
from attn.kernels import Kernels, fused_devices
from attn.models import spec
from attn.models.options import check_options


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
        attention: a name of `list_attentions()`, a mapping of slots as in `configs/attention/*.yaml`, or None for the network
            as timm ships it.
        num_classes: outputs of the classifier; 0 for none.
        features_only: return timm's `FeatureGetterNet`, which gives a list of feature maps.
        out_indices: which maps `features_only` gives; all by default.
        kernels: how the ends of ResNets' blocks are computed: `reference`, the modules one by one; `fused`, in two passes over
            the map (`attn.kernels`) wherever a gate allows it; `auto`, fused if the form for this machine has been built.
            Names of parameters and state dicts are the same, results equal up to rounding.
        timm_kwargs: passed to `timm.create_model` (`pretrained`, `in_chans`, `drop_path_rate`, `output_stride` ...). Weights
            are loaded before the attentions are put in.

    Returns:
        The timm model: with attention None its keys and outputs are timm's, else only the attentions' keys are new.

    Raises:
        ValueError: an unknown name or setting, or a pairing that makes no sense; says which and why.
    """
    if not isinstance(backbone, str):
        raise ValueError(f"backbone={backbone!r} must be a name, such as resnet50")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(f"num_classes={num_classes!r} must be a whole number, 0 or more")
    wanted = spec.resolve_attention(attention)
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
    if features_only:
        maps = len(model.feature_info)
        chosen = tuple(range(maps)) if out_indices is None else out_indices
        if not (isinstance(chosen, (tuple, list)) and chosen and all(i in range(-maps, maps) for i in chosen)):
            raise ValueError(f"{label}: out_indices={out_indices!r} must be some of 0 to {maps - 1}, as in (1, 2)")
        return FeatureGetterNet(model, out_indices=chosen)
    return model


def set_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Lets the blocks that can run fused do so, or no longer; see `create_model`.

    Raises:
        ValueError: an unknown choice, or `fused` where nothing is built.
    """
    devices = fused_devices(kernels)
    for module in model.modules():
        if hasattr(type(module), "fused_on"):
            module.fused_on = devices  # type: ignore[assignment]


def fused_blocks(model: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[int, int]:
    """How many blocks run fused for maps on a device and of a type, and how many are of a kind that can."""
    blocks: list[Any] = [module for module in model.modules() if hasattr(type(module), "fused_on")]
    return sum(block.runs_fused(device, dtype) for block in blocks), len(blocks)


def check_input(model: nn.Module, image_size: int, training: bool = False) -> None:
    """Lets a model see an image [1, 3, S, S] on the meta device, where nothing is computed: shapes alone decide.

    Args:
        model: left as it is.
        image_size: S, in pixels.
        training: in training mode, where a norm may need more than one value per channel.

    Raises:
        ValueError: the model cannot take images of this size (Swin's is fixed; others halve a small one to nothing), or one
            image alone.
    """
    before = model.training
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        with torch.no_grad():
            shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
            functional_call(model.train(training), shapes, (torch.empty(1, 3, image_size, image_size, device="meta"),))
    except (AssertionError, ValueError, RuntimeError) as error:
        if "meta" not in str(error).lower():  # else it is this device that an attention cannot take
            raise ValueError(f"cannot take images of {image_size} pixels: {error}") from error
    finally:
        model.train(before)


def _timm_model(name: str, num_classes: int, kwargs: dict[str, Any]) -> nn.Module:
    families()  # registers the networks that timm lacks
    for key, value in kwargs.items():
        if key == "in_chans" and not (isinstance(value, int) and value > 0):
            raise ValueError(f"in_chans={value!r} must be a whole number greater than 0")
        if key.startswith("drop") and key.endswith("_rate") and not (isinstance(value, (int, float)) and 0 <= value < 1):
            raise ValueError(f"{key}={value!r} must be a number, 0 or more and below 1")
    if not timm.is_model(name):
        raise ValueError(groups.unknown("backbone", name, list_backbones()) + ", or any timm name of their families")
    given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    try:
        return timm.create_model(name, num_classes=num_classes, **kwargs)
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"timm refuses an option ({given}): {error or type(error).__name__}") from None
    except (RuntimeError, OSError) as error:
        if kwargs.get("pretrained"):
            raise ValueError(f"pretrained=True: timm cannot get the weights: {error}") from None
        raise ValueError(f"timm refuses it ({given}): {error or type(error).__name__}") from None


def attach(model: nn.Module, family: Family, wanted: spec.AttentionSpec) -> None:
    """Fills the slots of an adopted model. All places are found before any is filled: their widths are the backbone's own.

    Raises:
        ValueError: the family lacks the slot or setting, or the attention refuses a site.
    """
    network = family.network.__name__
    if wanted.sites not in ("all", "native"):
        raise ValueError(f"sites={wanted.sites!r}; choose from all, native")
    position = _choice("position", wanted.position, family.block_positions, family)
    convs = _choice("convs", wanted.convs, family.conv_kinds, family) if family.conv_kinds else ""
    if wanted.conv is not None and not convs:
        raise ValueError(f"{network} has no convolution to replace (conv slot)")
    where: dict[Slot, str] = {"conv": convs, "block": position, "stage": ""}
    places = {slot: list(family.places(model, slot, where[slot])) for slot in where if slot in wanted.filled}
    if "block" in places and wanted.sites == "native":
        places["block"] = [place for place in places["block"] if place.site.native]
        if not places["block"]:
            raise ValueError(f"{network} has no attention of its own (sites=native)")
    for slot in places:
        _fill(places[slot], network, slot, wanted.filled[slot])


def _choice(key: str, value: str | None, choices: tuple[str, ...], family: Family) -> str:
    if value is not None and value not in choices:
        raise ValueError(f"{key}={value!r}; {family.network.__name__} has {', '.join(choices) or 'none'}")
    return choices[0] if value is None else value


def _fill(places: list[Place], network: str, slot: Slot, attention: partial[Attention]) -> None:
    if not places:
        raise ValueError(f"{network} offers no site in the {slot} slot")
    cls: type[Attention] = attention.func  # type: ignore[assignment]
    check_options(cls, attention.keywords)
    try:
        placed = cls.place([place.site for place in places], **attention.keywords)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} cannot be built: {error}") from error
    if all(module is None for module in placed):
        raise ValueError(f"{cls.__name__} fits no site of {network} in the {slot} slot")
    for place, module in zip(places, placed, strict=True):
        if module is None:
            if place.leave is not None:
                place.leave()
            continue
        if slot == "stage":
            place.owner.add_module(place.name, StageAttention(module))
            continue
        if place.make_room is not None:
            place.make_room()
        # timm sets an absent module as a plain attribute, which would hide a registered one.
        place.owner.__dict__.pop(place.name, None)
        setattr(place.owner, place.name, module)
        if module.takes_norm_act:
            if not place.norm_act:
                raise ValueError(f"{cls.__name__} brings its own norm and activation, which this block cannot give up")
            for name in place.norm_act:
                setattr(place.owner, name, nn.Identity())


def list_attentions() -> list[str]:
    """Names of the attentions: `configs/attention/*.yaml`."""
    return groups.names("attention")


def list_backbones() -> list[str]:
    """Names of the backbones with a config; any other timm name of a supported family works too."""
    return groups.names("backbone")


def set_last_norm(model: nn.Module, zero: bool) -> None:
    """Sets the weight of the last norm of every residual branch to 0 (timm's default for ResNets) or to 1 (the authors').

    Blocks that have no such initialisation in timm are left alone.
    """
    for block in model.modules():
        if not hasattr(block, "zero_init_last") or isinstance(block.zero_init_last, bool):
            continue
        norm = getattr(block, "bn3", None) or getattr(block, "bn2", None)
        if norm is not None and getattr(norm, "weight", None) is not None:
            nn.init.constant_(norm.weight, 0.0 if zero else 1.0)
