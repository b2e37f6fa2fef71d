"""The pairings in timm's registry: after `import attn.timm`, `timm.create_model("ba_resnet50")` builds BA-Net-50.

A name is `ATTENTION_BACKBONE`, for every name of `attn.list_attentions()` but `none` (which is timm's own network, under
timm's own name) and every one of `attn.list_backbones()`. timm's attended networks have no underscore (`seresnet50`) or
another backbone (`eca_resnet33ts`), and a name that timm has is refused, so nothing of timm's is replaced. `register` adds
further pairings. Whether an attention fits a backbone is known when the network is built, as with `attn.create_model`.

timm's scripts import it by `--device-modules attn.timm`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import timm
from timm.models import DefaultCfg, PretrainedCfg, get_pretrained_cfg, load_pretrained, register_model
from torch import nn

from attn.backbones import families
from attn.config import groups
from attn.models import spec
from attn.models.create import create_model, feature_maps, list_attentions, list_backbones

__all__ = ["register"]  # and the networks, which timm appends

default_cfgs: dict[str, DefaultCfg] = {}  # where timm looks for those of its networks, by name
WEIGHTS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")
OF_WEIGHTS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")  # what timm says of its own


def register(backbone: str, attention: str) -> str:
    """Registers a pairing, if it is not yet.

    Args:
        backbone: a name of timm, without a tag.
        attention: a name of `attn.list_attentions()`.

    Returns:
        Its name: `ATTENTION_BACKBONE`.

    Raises:
        ValueError: there is no such backbone or attention, or timm has a network of this name.
    """
    if not isinstance(backbone, str) or not isinstance(attention, str):
        raise ValueError(
            f"backbone={backbone!r} and attention={attention!r} must be names, as in register('resnet26d', 'ba')"
        )
    name = f"{attention}_{backbone}"
    if name in default_cfgs:
        return name
    if attention not in list_attentions() or attention == "none":
        raise ValueError(groups.unknown("attention", attention, [known for known in list_attentions() if known != "none"]))
    families()  # registers the networks that timm lacks
    if "." in backbone or not timm.is_model(backbone):
        raise ValueError(groups.unknown("backbone", backbone, list_backbones()) + ", or any timm name without a tag")
    if timm.is_model(name):
        raise ValueError(
            f"timm has a network named {name}: build the pairing by attn.create_model({backbone!r}, {attention!r})"
        )
    cfg = get_pretrained_cfg(backbone) or PretrainedCfg()
    images = {key: value for key, value in asdict(cfg).items() if key not in (*WEIGHTS, *OF_WEIGHTS, "architecture")}
    default_cfgs[name] = DefaultCfg(deque([""]), cfgs={"": PretrainedCfg(**images)})
    globals()[name] = register_model(_entrypoint(name, backbone, attention))
    return name


def _entrypoint(name: str, backbone: str, attention: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _build(name, backbone, attention, pretrained, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"`attn.create_model({backbone!r}, {attention!r})`."
    return build


def _build(
    name: str,
    backbone: str,
    attention: str,
    pretrained: bool,
    /,
    *,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: Any = None,
    features_only: bool = False,
    out_indices: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """The network of a pairing, as timm's factory asks for it.

    Args:
        pretrained: weights of the pairing where `pretrained_cfg` says where they are (`hf-hub:`, `local-dir:`), else timm's
            of the backbone, under attentions as initialised.
        pretrained_cfg: a tag of the backbone's weights, or what describes weights and images.
        kwargs: of `attn.create_model`; and `attention`, a mapping of slots instead of the one that the name stands for.
    """
    slots = kwargs.pop("attention", None)
    if slots is not None:
        expect_own_modules(slots)
    given = asdict(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg
    described = {} if given is None or isinstance(given, str) else {k: v for k, v in given.items() if v is not None}
    own = {key: described[key] for key in WEIGHTS if key in described}
    images = {key: value for key, value in described.items() if key not in (*WEIGHTS, "architecture", "tag")}
    kwargs.setdefault("num_classes", images.get("num_classes", 1000))
    model: Any = create_model(
        backbone,
        attention if slots is None else slots,
        pretrained=pretrained and not own,
        pretrained_cfg=given if isinstance(given, str) else None,
        pretrained_cfg_overlay={**images, **(pretrained_cfg_overlay or {})},
        cache_dir=cache_dir,
        **kwargs,
    )
    if pretrained and own:
        cfg = {**model.pretrained_cfg, **own}
        load_pretrained(model, cfg, model.num_classes, kwargs.get("in_chans", 3), cache_dir=cache_dir)
    kept = {key: value for key, value in model.pretrained_cfg.items() if key not in (*WEIGHTS, *OF_WEIGHTS)}
    model.pretrained_cfg = kept | own | {"architecture": name}
    model.default_cfg = model.pretrained_cfg
    return feature_maps(model, out_indices) if features_only else model


def expect_own_modules(slots: Mapping[str, Any]) -> None:
    """Checks that a mapping of slots, which may be of a downloaded file, names only attentions of this package.

    Raises:
        ValueError: it names another module, and importing that may execute anything.
    """
    for where, target in spec.targets(slots):
        if not str(target).startswith("attn.modules."):
            raise ValueError(
                f"attention.{where}={target} is not of the package attn, and importing it may execute anything; if you "
                "trust it, build the model by attn.create_model"
            )


for _backbone in list_backbones():
    for _attention in list_attentions():
        if _attention != "none":
            register(_backbone, _attention)
