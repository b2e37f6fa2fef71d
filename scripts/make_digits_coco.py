"""Composes scenes of real handwritten digits for detectors: `python scripts/make_digits_coco.py --out data/digits`.

The digits are those of scikit-learn's `load_digits` (1,797 real ones, 8x8 pixels), enlarged, turned a little, tinted, and
put on uneven paper. Some scenes are empty, some digits are tiny or cross the border, some are in a crowd that is annotated
as one region. Scenes of validation hold only digits that `train.py data=digits` validates on, so a backbone trained there
has not seen them. The same arguments give the same files.

    OUT/coco/{train,val}/*.jpg, OUT/coco/annotations/{train,val}.json      boxes, instance masks, crowds
    OUT/VOCdevkit/VOC2007 (trainval, test), VOC2012 (trainval)             boxes; a crowd is marked difficult
"""

from __future__ import annotations

import json
import shutil
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from attn.config import scripts
from attn.config.scripts import not_negative
from attn.data.splits import stratified
from attn.errors import UserError

CLASSES = tuple("0123456789")
SIZES = (14, 36)  # height of a digit in pixels
TINY = (5, 8)
OVERLAP = 0.15  # largest part of a digit's box that another may cover
INK = 0.3  # smallest fraction of ink in a pixel of the mask


@dataclass
class Thing:
    """One annotated digit, or a crowd of one class."""

    label: int
    mask: np.ndarray  # bool [H, W]
    crowd: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


@dataclass
class Scene:
    """An image, uint8 [H, W, 3], and what is in it."""

    pixels: np.ndarray
    things: list[Thing] = field(default_factory=list)


class Digits:
    """Handwritten digits of one side of the split."""

    def __init__(self, held_out: bool) -> None:
        bunch = load_digits()
        rows = stratified(bunch.target, every=5, held_out=held_out)
        self.images, self.labels = bunch.images[rows] / 16, bunch.target[rows]

    def draw(self, rng: np.random.Generator, height: int, label: int | None = None) -> tuple[np.ndarray, int]:
        """Ink of one digit, float [h, w] in 0..1, and its label."""
        choices = np.arange(len(self.labels)) if label is None else np.flatnonzero(self.labels == label)
        index = rng.choice(choices)
        width = max(4, round(height * rng.uniform(0.75, 1.1)))
        image = Image.fromarray((self.images[index] * 255).astype(np.uint8))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.float32) / 255, int(self.labels[index])


def compose(rng: np.random.Generator, digits: Digits, size: int) -> Scene:
    """One scene of `size` x `size` pixels."""
    scene = Scene(paper(rng, size))
    if rng.random() < 0.04:
        return scene
    taken = np.zeros((size, size), dtype=bool)
    if rng.random() < 0.15:
        add_crowd(rng, scene, digits, taken)
    heights = [int(rng.integers(*SIZES)) for _ in range(rng.integers(1, 6))]
    if rng.random() < 0.3:
        heights += [int(rng.integers(*TINY)) for _ in range(rng.integers(1, 4))]
    for height in heights:
        add_digit(rng, scene, digits, height, taken)
    return scene


def paper(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark, uneven, grainy background."""
    coarse = rng.uniform(0, 90, (5, 5, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.clip(smooth + rng.normal(0, 8, (size, size, 1)), 0, 255).astype(np.uint8)


def add_digit(rng: np.random.Generator, scene: Scene, digits: Digits, height: int, taken: np.ndarray) -> None:
    """Puts a digit where there is room, sometimes across the border; leaves it out if there is none."""
    ink, label = digits.draw(rng, height)
    for _ in range(20):
        top, left = (
            int(rng.integers(-side // 4, size - side * 3 // 4 + 1))
            for side, size in zip(ink.shape, taken.shape, strict=True)
        )
        mask = place(scene, ink, top, left, None)
        if mask.sum() < 6 or taken[box_slices(mask)].mean() > OVERLAP:
            continue
        place(scene, ink, top, left, rng.uniform(130, 255, 3))
        for other in scene.things:
            other.mask &= ~mask
        scene.things = [thing for thing in scene.things if thing.mask.any()]
        scene.things.append(Thing(label, mask))
        taken[box_slices(mask)] = True
        return


def add_crowd(rng: np.random.Generator, scene: Scene, digits: Digits, taken: np.ndarray) -> None:
    """A heap of small digits of one class, one region for all of them."""
    size = len(taken)
    label, side = int(rng.integers(10)), size // 3
    top, left = (int(v) for v in rng.integers(0, size - side, 2))
    region = np.zeros_like(taken)
    for _ in range(12):
        ink, _ = digits.draw(rng, int(rng.integers(8, 13)), label)
        y, x = (int(v) for v in rng.integers(0, side - 12, 2))
        region |= place(scene, ink, top + y, left + x, rng.uniform(130, 255, 3))
    scene.things.append(Thing(label, region, crowd=True))
    taken[box_slices(region)] = True


def place(scene: Scene, ink: np.ndarray, top: int, left: int, colour: np.ndarray | None) -> np.ndarray:
    """The visible mask of ink at a place, bool [H, W]; with a colour it is painted, too."""
    size = scene.pixels.shape[0]
    full = np.zeros((size, size), dtype=np.float32)
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + ink.shape[0], size), min(left + ink.shape[1], size)
    if y0 < y1 and x0 < x1:
        full[y0:y1, x0:x1] = ink[y0 - top : y1 - top, x0 - left : x1 - left]
    if colour is not None:
        share = full[:, :, None]
        scene.pixels = (scene.pixels * (1 - share) + colour * share).astype(np.uint8)
    return full > INK


def box_slices(mask: np.ndarray) -> tuple[slice, slice]:
    left, top, width, height = Thing(0, mask).box
    return slice(top, top + height), slice(left, left + width)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding: lengths of runs in column order, the first of zeros."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])) if len(edges) else np.array([mask.size])
    # A run of ones that ends at the last pixel leaves an empty run of zeros after it.
    return {"size": list(mask.shape), "counts": [int(c) for c in (counts[:-1] if counts[-1] == 0 else counts)]}


def write_coco(scenes: list[Scene], folder: Path, split: str) -> None:
    """Images and one annotation file of a split."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, 1):
        name = f"{image_id:06d}.jpg"
        save(scene, folder / split / name)
        height, width = scene.pixels.shape[:2]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for thing in scene.things:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": thing.label + 1,
                    "bbox": list(thing.box),
                    "area": int(thing.mask.sum()),
                    "iscrowd": int(thing.crowd),
                    "segmentation": run_lengths(thing.mask),
                }
            )
    content = {
        "info": {"description": "scenes of scikit-learn's handwritten digits"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def write_voc(scenes: list[Scene], folder: Path, split: str, first: int = 1) -> None:
    """Images, one XML file for each, and the list of a split, as in the VOC development kit."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = [f"{first + i:06d}" for i in range(len(scenes))]
    for name, scene in zip(names, scenes, strict=True):
        save(scene, folder / "JPEGImages" / f"{name}.jpg")
        root = ElementTree.Element("annotation")
        height, width = scene.pixels.shape[:2]
        add_element(root, "filename", f"{name}.jpg")
        add_element(root, "size", {"width": width, "height": height, "depth": 3})
        for thing in scene.things:
            left, top, box_width, box_height = thing.box
            # VOC counts pixels from 1, and the last is inside.
            box = {"xmin": left + 1, "ymin": top + 1, "xmax": left + box_width, "ymax": top + box_height}
            values = {"name": CLASSES[thing.label], "difficult": int(thing.crowd), "truncated": 0, "bndbox": box}
            add_element(root, "object", values)
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{name}.xml")
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def add_element(parent: ElementTree.Element, tag: str, value: Any) -> None:
    element = ElementTree.SubElement(parent, tag)
    if isinstance(value, dict):
        for key, child in value.items():
            add_element(element, key, child)
    else:
        element.text = str(value)


def save(scene: Scene, path: Path) -> None:
    Image.fromarray(scene.pixels).save(path, quality=95)


def make(out: Path, train: int, val: int, size: int, seed: int) -> None:
    """Writes both formats.

    Raises:
        FileExistsError: something is there already.
    """
    scenes = {}
    for split, (number, held_out) in enumerate([(train, False), (val, True)]):
        digits = Digits(held_out)
        # Every scene is a function of its index, so more of them leave the first ones as they are.
        scenes[held_out] = [compose(np.random.default_rng([seed, split, i]), digits, size) for i in range(number)]
    (out / "coco").mkdir(parents=True)
    write_coco(scenes[False], out / "coco", "train")
    write_coco(scenes[True], out / "coco", "val")
    half = train // 2
    write_voc(scenes[False][:half], out / "VOCdevkit" / "VOC2007", "trainval")
    write_voc(scenes[True], out / "VOCdevkit" / "VOC2007", "test", first=half + 1)
    write_voc(scenes[False][half:], out / "VOCdevkit" / "VOC2012", "trainval")


def main() -> None:
    parser = scripts.Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/digits"), help="folder to make (default %(default)s)")
    parser.add_argument("--train", type=int, default=480, help="training scenes (default %(default)s)")
    parser.add_argument("--val", type=int, default=120, help="held-out scenes (default %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="pixels of a side (default %(default)s)")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the scenes (default 0)")
    parser.add_argument("--force", action="store_true", help="replace the folder if it is there")
    args = parser.parse_args()
    if args.train < 2 or args.val < 1 or args.size < 64:
        raise UserError(
            f"--train {args.train} --val {args.val} --size {args.size}: must be at least --train 2, --val 1 and --size 64"
        )
    if args.force:
        for part in ("coco", "VOCdevkit"):
            shutil.rmtree(args.out / part, ignore_errors=True)
    if (args.out / "coco").exists() or (args.out / "VOCdevkit").exists():
        raise UserError(f"{args.out} has scenes already; --force replaces them, --out makes them elsewhere")
    try:
        make(args.out, args.train, args.val, args.size, args.seed)
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be written: {error.strerror}") from None
    print(f"{args.train} training and {args.val} held-out scenes in {args.out / 'coco'} and {args.out / 'VOCdevkit'}")


if __name__ == "__main__":
    scripts.run(main)
