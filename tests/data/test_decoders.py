"""Decoders: the same pixels from each, which are torchvision's over Pillow's."""

from __future__ import annotations

import importlib.util
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from attn import rng
from attn.config.schema import Data
from attn.data import decoders, region
from attn.data.decoders import Cut, Rectangle, Whole
from attn.data.imagefolder import Encoded, UnreadableImage
from attn.data.loader import Batch, Seeded, _collate, to_device
from attn.data.settle import settled
from attn.data.transforms import eval_transform, train_transform
from attn.runs.fingerprint import fingerprint


@pytest.fixture(scope="session")
def region_cache(compile_cache: Path) -> Path:
    """What XDG_CACHE_HOME has to be for the region decoder to be found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(compile_cache))
        built, line = region.build()
    if not built:
        pytest.skip(line)
    return compile_cache


@pytest.fixture
def built(region_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(region_cache))
    region.library.cache_clear()
    yield
    region.library.cache_clear()


@pytest.fixture
def not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    region.library.cache_clear()
    yield
    region.library.cache_clear()


def photograph(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    """Coarse noise: edges in brightness and colours, and smooth areas."""
    small = np.random.default_rng(seed).integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def through(opener: str, content: bytes, cut: Cut, interpolation: str = "bilinear") -> np.ndarray:
    opened = decoders.OPENERS[opener](Encoded(content, "image"))
    return opened.cut(cut, interpolation)


@st.composite
def cuts(draw: st.DrawFn, width: int, height: int) -> Cut:
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box = Rectangle(left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top)))
    size = draw(st.tuples(st.integers(1, 120), st.integers(1, 120)) | st.just((box.width, box.height)))
    x, y = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
    kept = Rectangle(x, y, draw(st.integers(1, size[0] - x)), draw(st.integers(1, size[1] - y)))
    return Cut(box, size, kept, draw(st.booleans()))


KINDS = [(f"{mode}, {s}, {p}", mode, s, p) for mode, s in (("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0)) for p in (0, 1)]


@pytest.mark.parametrize(("mode", "subsampling", "progressive"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_region_has_the_pixels_of_the_whole(
    built: None, mode: str, subsampling: int, progressive: int, data: st.DataObject
) -> None:
    width, height = data.draw(st.tuples(st.integers(1, 150), st.integers(1, 150)))
    content = jpeg(photograph(width, height).convert(mode), subsampling=subsampling, progressive=bool(progressive))
    cut = data.draw(cuts(width, height))
    interpolation = data.draw(st.sampled_from(sorted(decoders.RESAMPLE)))
    opened = decoders.open_region(Encoded(content, "image"))
    assert isinstance(opened, decoders.Region)
    assert opened.size == (width, height)
    assert np.array_equal(opened.cut(cut, interpolation), through("pil", content, cut, interpolation))


def test_what_the_region_decoder_does_not_support_is_pillows(built: None) -> None:
    image, cut = photograph(), Cut(Rectangle(11, 9, 50, 40), (30, 30), Rectangle(0, 0, 30, 30))
    png = io.BytesIO()
    image.save(png, "PNG")
    for content in (jpeg(image.convert("CMYK")), png.getvalue(), jpeg(image) + b"more" * 100):
        assert isinstance(decoders.open_region(Encoded(content, "image")), Whole)
        assert np.array_equal(through("region", content, cut), through("pil", content, cut))


@pytest.mark.parametrize("decoder", ["pil", "region", "torchcodec"])
def test_a_damaged_file_is_named_by_each(built: None, decoder: str) -> None:
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec")
    top = Cut(Rectangle(0, 0, 30, 10), (30, 10), Rectangle(0, 0, 30, 10))
    for content in (jpeg(photograph())[:-400], jpeg(photograph())[:100], b"", b"text"):
        with pytest.raises(UnreadableImage, match=r"image: cannot be read as an image \("):
            through(decoder, content, top)


def test_damage_inside_a_file_gives_pillows_pixels(built: None) -> None:
    """libjpeg warns and goes on, for Pillow as well: what it makes of the rest is the same."""
    content = bytearray(jpeg(photograph(200, 160)))
    cut, found = Cut(Rectangle(20, 20, 100, 100), (64, 64), Rectangle(0, 0, 64, 64)), 0
    for place in range(700, len(content) - 50, 97):
        damaged = bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            expected = through("pil", damaged, cut)
        except UnreadableImage:
            continue
        found += 1
        assert np.array_equal(through("region", damaged, cut), expected)
    assert found > 10


def test_torchcodec_gives_pillows_pixels() -> None:
    pytest.importorskip("torchcodec")
    image, cut = photograph(), Cut(Rectangle(11, 9, 50, 40), (30, 30), Rectangle(0, 0, 30, 30))
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees, which is ignored
    for content in (jpeg(image), jpeg(image.convert("L")), jpeg(image, progressive=True), jpeg(image, exif=exif)):
        assert np.array_equal(through("torchcodec", content, cut), through("pil", content, cut))


@pytest.mark.parametrize("decoder", ["pil", "region"])
@pytest.mark.parametrize("crop", ["random_resized", "resize", "pad"])
def test_training_pixels_are_torchvisions(built: None, decoder: str, crop: str) -> None:
    """Bit for bit, random choices included."""
    data = Data(image_size=40, test_resize=44, crop=crop, decoder=decoder, interpolation="bicubic")
    bicubic = InterpolationMode.BICUBIC
    first = {
        "random_resized": [v2.RandomResizedCrop(40, interpolation=bicubic)],
        "resize": [v2.Resize((40, 40), interpolation=bicubic)],
        "pad": [v2.Resize((40, 40), interpolation=bicubic), v2.RandomCrop(40, padding=4)],
    }[crop]
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
    expected, found = v2.Compose([*first, v2.RandomHorizontalFlip(), *last]), train_transform(data)
    for seed in range(12):
        image = Encoded(jpeg(photograph(60 + 7 * seed, 130 - 6 * seed, seed)), "image")
        rng.seed_sample(seed)
        one = expected(image.rgb())
        rng.seed_sample(seed)
        assert torch.equal(found.pixels.normalised(found(image)), one)


@pytest.mark.parametrize("decoder", ["pil", "region"])
def test_test_pixels_are_torchvisions(built: None, decoder: str) -> None:
    data = Data(image_size=40, test_resize=46, decoder=decoder)
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)]
    expected, found = v2.Compose([v2.Resize(46), v2.CenterCrop(40), *last]), eval_transform(data)
    for seed in range(12):
        image = Encoded(jpeg(photograph(46 + 9 * seed, 150 - 8 * seed, seed)), "image")
        assert torch.equal(found.pixels.normalised(found(image)), expected(image.rgb()))


def test_a_batch_is_normalised_as_its_images_are() -> None:
    data = Data(image_size=16, test_resize=16)
    samples = Seeded([(photograph(), 0)] * 4, train_transform(data), seed=0)  # type: ignore[arg-type]
    items = [samples[0, index] for index in range(4)]
    batch = Batch(*_collate(items))
    assert batch.images.dtype == torch.uint8
    normalise = v2.Normalize(data.mean, data.std)
    expected = torch.stack([normalise(v2.functional.to_dtype(item[0], torch.float32, scale=True)) for item in items])
    for channels_last in (False, True):
        moved = to_device(batch, torch.device("cpu"), channels_last, samples.pixels).images
        assert torch.equal(moved, expected)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert moved.is_contiguous(memory_format=layout)


def test_erasing_fills_normalised_pixels() -> None:
    data = Data(image_size=16, test_resize=16, random_erasing=1.0, hflip=0.0, crop="resize")
    plain = train_transform(Data(image_size=16, test_resize=16, hflip=0.0, crop="resize"))
    rng.seed_sample(0)
    erased, whole = train_transform(data)(photograph()), plain.pixels.normalised(plain(photograph()))
    changed = (erased != whole).any(0).float().mean()
    assert 0 < changed < 0.5
    assert torch.equal(train_transform(data).pixels.normalised(erased), erased)


def test_the_decoder_is_settled_where_it_is_used(built: None) -> None:
    assert settled(Data(source="fake", decoder="auto")).decoder == "region"
    assert settled(Data(source="fake")).decoder == "pil"


def test_a_decoder_that_is_not_here(not_built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(Data(source="fake", decoder="auto")).decoder == "pil"
    with pytest.raises(ValueError, match=r"data.decoder=region is not built here: build it \(python -m attn.build\)"):
        settled(Data(source="fake", decoder="region"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'attn\[torchcodec\]'"):
        settled(Data(source="fake", decoder="torchcodec"))


def test_the_build_says_what_it_did(region_cache: Path, tmp_path: Path) -> None:
    def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return call(["-m", "attn.build", *arguments], env={"XDG_CACHE_HOME": str(tmp_path), **environment})

    none = build("--optional", CXX="no-such-compiler")
    assert none.returncode == 0
    assert "region decoder: not built, no C++ compiler found (no-such-compiler); data.decoder=pil is used" in none.stderr
    assert build(CXX="no-such-compiler").returncode == 1
    fake = tmp_path / "compiler"
    fake.write_text("#!/bin/sh\necho 'x.cpp:1: fatal error: jpeglib.h: No such file or directory' >&2\nexit 1\n")
    fake.chmod(0o755)
    assert "region decoder: not built, no jpeglib.h found (Debian: libjpeg62-turbo-dev)" in build(CXX=str(fake)).stderr
    assert list(tmp_path.glob("attn/*.so")) == []


def test_a_form_with_other_pixels_is_not_kept(region_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(region, "HEIGHT_FIRST", not region.HEIGHT_FIRST)
    built, line = region.build()
    assert not built
    assert "its pixels are not those of Pillow" in line
    assert list(tmp_path.rglob("*.so")) == []


def test_a_run_with_the_region_decoder_ends_as_one_with_pillow(built: None, tmp_path: Path) -> None:
    for split, count in (("train", 8), ("val", 2)):
        for label in range(2):
            folder = tmp_path / "data" / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.JPEG").write_bytes(jpeg(photograph(90, 70, 10 * label + index)))
    small = ["backbone=resnet18", "backbone.name=resnet10t", "data=imagenet", f"data.root={tmp_path / 'data'}"]
    small += ["data.num_classes=2", "data.image_size=32", "data.test_resize=36", "data.workers=0", "logger=none"]
    small += ["schedule=quick", "schedule.batch_size=8", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    for decoder in ("pil", "region"):
        done = call(["train.py", *small, f"data.decoder={decoder}", f"run_dir={tmp_path / decoder}"])
        assert done.returncode == 0, done.stderr
    assert fingerprint(tmp_path / "pil") == fingerprint(tmp_path / "region")
    refused = call(["train.py", *small, "data.decoder=pil", f"run_dir={tmp_path / 'region'}"])
    assert refused.returncode == 2
    assert "data.decoder: region -> pil" in refused.stderr
