"""Grad-CAM at a stage, at a block, or at each step within a block. Selvaraju et al.: Grad-CAM, ICCV 2017; DCANet, Figures 1 and 4.

L = relu(sum_c w_c A_c), w_c = the mean over positions of d score / d A_c. A map is scaled to 0 ... 1 and enlarged to the image, as
the package grad-cam does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from attn.analysis import pictures, style
from attn.analysis.files import Table
from attn.analysis.pictures import Picture
from attn.analysis.subjects import Subject, same_size
from attn.analysis.trace import Block, Pass, as_map, forward
from attn.attention import StageAttention
from attn.config.analysis import Gradcam
from attn.config.groups import unknown
from attn.errors import UserError


@dataclass(frozen=True)
class Heat:
    """What one network looks at.

    Attributes:
        name: the network.
        places: where in the network: `stage 3`, `block 3.2`, or the steps within a block.
        maps: [places, N, H, W] in the size of the images, from 0 to 1.
        target: the classes whose scores are explained, [N].
        probability: what the network gives them, [N].
    """

    name: str
    places: list[str]
    maps: np.ndarray
    target: np.ndarray
    probability: np.ndarray


def measure(
    name: str,
    model: nn.Module,
    images: Tensor,
    at: Sequence[str] = (),
    inside: bool = False,
    target: Tensor | None = None,
) -> Heat:
    """Grad-CAM of a batch of images.

    Args:
        name: the network, for the titles.
        model: the network; the same afterwards, gradients of parameters included.
        images: [N, 3, H, W], normalised, on the device of the network.
        at: stages (`3`) or blocks (`3.2`), counted from 1; empty for the last block.
        inside: the steps within the one block of `at` in place of its output alone.
        target: classes whose scores are explained, [N]; None for the predicted ones.

    Raises:
        UserError: there is no such place, or nothing of the image reaches the score from there.
    """
    if inside and len(at) > 1:
        raise UserError(f"at={list(at)}: inside=true looks into one block; name one")
    with torch.enable_grad():
        seen = forward(model, images.detach().clone().requires_grad_())
        chosen = seen.logits.argmax(1) if target is None else target
        tensors = steps_within(seen, at[0] if at else default_block(seen, model)) if inside else places(seen, model, at)
        score = seen.logits.gather(1, chosen[:, None]).sum()
        gradients = torch.autograd.grad(score, list(tensors.values()), allow_unused=True)
    maps, size = [], (images.shape[2], images.shape[3])
    for (place, activation), gradient in zip(tensors.items(), gradients, strict=True):
        slope = None if gradient is None else as_map(gradient, model, size)
        if slope is None or not bool(slope.any()):
            raise UserError(
                f"{name}: the score has no gradient at the {place}: what comes after reads nothing of it (as a classifier does that reads "
                "the class token alone, or a branch whose last norm has the weight 0); choose another place with at="
            )
        maps.append(cam(as_map(activation.detach(), model, size), slope, size))
    probability = seen.logits.detach().softmax(1).gather(1, chosen[:, None])[:, 0]
    stacked = torch.stack(maps).cpu().numpy()
    return Heat(name, list(tensors), stacked, chosen.cpu().numpy(), probability.cpu().numpy())


def cam(activation: Tensor, gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Grad-CAM from a map and the gradient of the score, both [N, C, h, w]: [N, H, W], from 0 to 1."""
    weights = gradient.float().mean((2, 3), keepdim=True)
    heat = (weights * activation.float()).sum(1, keepdim=True).relu()
    enlarged = F.interpolate(unit(heat), size=size, mode="bilinear", align_corners=False)
    return unit(enlarged)[:, 0]


def unit(x: Tensor) -> Tensor:
    """Each image of [N, 1, H, W] scaled to 0 ... 1; of one value, to 0."""
    x = x - x.amin((2, 3), keepdim=True)
    return x / (x.amax((2, 3), keepdim=True) + 1e-7)


def default_block(seen: Pass, model: nn.Module) -> str:
    """The last block; before a classifier that reads the class token alone, the one before it."""
    blocks = [block.label for block in seen.blocks if not block.label.endswith(".end")]
    reads_token = getattr(model, "global_pool", None) == "token"
    return blocks[-2] if reads_token and len(blocks) > 1 else blocks[-1]


def places(seen: Pass, model: nn.Module, at: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of stages and blocks by their names."""
    found = {}
    for label in at or [default_block(seen, model)]:
        if "." in label:
            found[f"block {label}"] = find(seen, label).passage.output
        else:
            found[f"stage {label}"] = stage_output(seen, label)
    return found


def find(seen: Pass, label: str) -> Block:
    """The block of a label.

    Raises:
        UserError: there is none.
    """
    for block in seen.blocks:
        if block.label == label:
            return block
    raise UserError(f"at={label}: {unknown('block', label, [block.label for block in seen.blocks])}")


def stage_output(seen: Pass, label: str) -> Tensor:
    """The output of a stage.

    Raises:
        UserError: there is none.
    """
    inside = [block for block in seen.blocks if str(block.stage) == label]
    if not inside:
        stages = dict.fromkeys(str(block.stage) for block in seen.blocks)
        raise UserError(f"at={label}: {unknown('stage', label, stages)}")
    if isinstance(inside[0].passage.input, list):  # a dense layer returns only what it adds
        return seen.stages[inside[0].stage - 1 - seen.blocks[-1].stage]
    return inside[-1].passage.output


def steps_within(seen: Pass, label: str) -> dict[str, Tensor]:
    """The input of a block, the outputs of its convolutions with their norms and activations, and its output, in order.

    Raises:
        UserError: there is no such block, or it is none of convolutions.
    """
    block = find(seen, label)
    passage = block.passage
    feats = max((call.feats for call in passage.calls), key=len, default=())
    # In blocks of self-attention the maps that an attention sees are copies beside the path of the network.
    dense = isinstance(passage.input, list)
    if isinstance(passage.block, StageAttention) or len(feats) < 2 or not (dense or feats[0] is passage.input):
        raise UserError(
            f"at={label}: {type(passage.block).__name__} is no block of convolutions with steps to show: leave out inside=true"
        )
    names = ["block input", *(f"conv {i}" for i in range(1, len(feats)))]
    return {**dict(zip(names, feats, strict=True)), "block output": passage.output}


@style.styled
def draw(found: Sequence[Heat], shown: Sequence[Picture], names: Sequence[str]) -> Figure:
    """A row per image; the image, then the places of each network.

    Args:
        found: one per network.
        shown: the images.
        names: of the classes.
    """
    columns = [(one, p) for one in found for p in range(len(one.places))]
    figure, axes = style.panels(len(shown), 1 + len(columns), width=1.6, height=1.75)
    for row, picture in enumerate(shown):
        axes[row, 0].imshow(picture.pixels)
        axes[row, 0].set_ylabel(picture.title)
        for column, (one, p) in enumerate(columns, start=1):
            panel = axes[row, column]
            panel.imshow(picture.pixels.mean(2), cmap="gray", vmin=0, vmax=1)
            panel.imshow(one.maps[p, row], cmap="inferno", vmin=0, vmax=1, alpha=0.6)
            if row == 0:
                panel.set_title(f"{pictures.two_lines(one.name)}\n{one.places[p]}")
            if p == 0:
                panel.set_xlabel(f"{names[int(one.target[row])]}: {100 * one.probability[row]:.0f} %")
    axes[0, 0].set_title("image")
    for panel in axes.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
    return figure


def table(found: Sequence[Heat], shown: Sequence[Picture], names: Sequence[str]) -> Table:
    """A row per network, place, image and pixel row would be long: a row per map, with its mean and its centre of mass from 0 to 1."""
    rows = []
    for one in found:
        for p, place in enumerate(one.places):
            for n, picture in enumerate(shown):
                heat = one.maps[p, n]
                total = max(float(heat.sum()), 1e-12)
                y, x = (
                    (heat.sum(axis) * (np.arange(heat.shape[1 - axis]) + 0.5)).sum() / heat.shape[1 - axis] / total
                    for axis in (1, 0)
                )
                about = (one.name, place, picture.title, names[int(one.target[n])], float(one.probability[n]))
                rows.append((*about, float(heat.mean()), float(x), float(y)))
    return Table(("network", "place", "image", "class", "probability", "mean", "centre_x", "centre_y"), rows)


def run(subjects: Sequence[Subject], options: Gradcam) -> tuple[Figure, Table]:
    """The job of `scripts/analyse.py gradcam`."""
    subjects = same_size(subjects)
    shown = pictures.load(subjects[0], options.images)
    labels = [picture.label for picture in shown]
    if options.target == "label" and None in labels:
        raise UserError("target=label: an image file has no label; use target=predicted")
    found = []
    for subject in subjects:
        device = next(subject.model.parameters()).device
        images = pictures.batch(shown, device)
        target = torch.tensor(labels, device=device) if options.target == "label" else None
        found.append(measure(subject.name, subject.model, images, options.at, options.inside, target))
    names = subjects[0].classes or [str(i) for i in range(subjects[0].cfg.data.num_classes)]
    return draw(found, shown, names), table(found, shown, names)
