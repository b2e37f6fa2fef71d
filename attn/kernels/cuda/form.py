"""The Triton form of the operators: float32, float16 and bfloat16, with sums and vectors in float32."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn.kernels.layout import floats, laid_out, memory_format, pixel_weights

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What a pass aims at. Enough programs to fill a large GPU even where the batch is small; tiles whose sums stay in registers.
PROGRAMS, TILE, BLOCK = 1024, 2048, 128


@functools.cache
def kernels() -> tuple[ModuleType, ModuleType] | None:
    """The modules `maps` and `vectors`; None where Triton cannot be imported."""
    try:
        from attn.kernels.cuda import maps, vectors
    except ImportError:
        return None
    return maps, vectors


def missing() -> str | None:
    """Why blocks cannot run in this form here; None if they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (7, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 7.0, which Triton needs"
    if kernels() is None:
        return "Triton is not installed here; install it with pip install triton"
    return None


def serves(y: Tensor) -> bool:
    """Whether this form supports a map."""
    return y.dtype in DTYPES and y.numel() > 0 and kernels() is not None


class Tiles(NamedTuple):
    """How a pass over a map is shared out; by shapes alone, so that results do not depend on the device.

    Attributes:
        n, c, pixels: of the map.
        pixel_stride, channel_stride: of its layout.
        block_p, block_c: pixels and channels of a tile.
        parts, span: of the pixels of a sample, and how many each has.
    """

    n: int
    c: int
    pixels: int
    pixel_stride: int
    channel_stride: int
    block_p: int
    block_c: int
    parts: int
    span: int

    @classmethod
    def of(cls, y: Tensor) -> Tiles:
        n, c, pixels = y.shape[0], y.shape[1], y.shape[2] * y.shape[3]
        # A tile is long where the memory is adjacent: in channels (NHWC) or in pixels of one channel (NCHW).
        if memory_format(y) == torch.channels_last:
            strides = (c, 1)
            block_c = min(BLOCK, power_of_two(c))
            block_p = TILE // block_c
        else:
            strides = (1, pixels)
            block_p = min(4 * BLOCK, power_of_two(pixels))
            block_c = min(TILE // block_p, power_of_two(c))
        tiles = ceil(pixels, block_p)
        parts = min(tiles, ceil(PROGRAMS, n * ceil(c, block_c)))
        span = ceil(tiles, parts) * block_p
        return cls(n, c, pixels, *strides, block_p, block_c, ceil(pixels, span), span)

    def run(self, name: str, y: Tensor, *arguments: Any, **constants: Any) -> None:
        """Starts a kernel of `maps`."""
        shape = (self.c, self.pixels, self.pixel_stride, self.channel_stride, self.span)
        grid = (self.n, ceil(self.c, self.block_c), self.parts)
        start(0, name, y, grid, *arguments, *shape, BLOCK_P=self.block_p, BLOCK_C=self.block_c, **constants)

    def per_channel(self, name: str, y: Tensor, *arguments: Any, **constants: Any) -> None:
        """Starts a kernel of `vectors` whose programs have some channels of all samples."""
        block_n, block_c = min(BLOCK, power_of_two(self.n)), 16
        start(1, name, y, (ceil(self.c, block_c),), *arguments, BLOCK_N=block_n, BLOCK_C=block_c, **constants)

    def sums(self, y: Tensor, kinds: int) -> Tensor:
        return vector(y, kinds, self.parts, self.n, self.c)


def start(module: int, name: str, y: Tensor, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Starts a kernel on the device of y, by its module in `kernels()` and its name."""
    found = kernels()
    assert found is not None, "`serves` has checked it"
    with torch.cuda.device(y.device) if y.is_cuda else nullcontext():
        getattr(found[module], name)[grid](*arguments, **constants)


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(a: int) -> int:
    """The smallest that is not below a."""
    return 1 << (a - 1).bit_length()


def vector(y: Tensor, *shape: int) -> Tensor:
    return y.new_empty(shape, dtype=torch.float32)


def basis_sums(basis: Tensor | None) -> Tensor | None:
    return None if basis is None else basis.float().sum((1, 2))


def normalise(
    tiles: Tiles,
    y: Tensor,
    sums: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor | None, Tensor | None],
    eps: float,
    squeezed: tuple[Tensor, Tensor, Tensor] | None = None,
    basis: Tensor | None = None,
) -> Tensor:
    """norm [5, C], from the sums of `maps.moments`; fills mean, variance and raw of `squeezed`."""
    norm, count = vector(y, 5, tiles.c), tiles.n * tiles.pixels
    tiles.per_channel(
        "statistics",
        y,
        sums,
        y,
        floats(weight),
        floats(bias),
        *map(floats, running),
        basis_sums(basis),
        norm,
        *(squeezed or (None, None, None)),
        *(tiles.n, tiles.c, tiles.pixels, tiles.channel_stride, tiles.parts),
        eps,
        count / max(1, count - 1),
        RUNNING=running[0] is not None,
        SQUEEZE=squeezed is not None,
        BASIS=basis is not None,
    )
    return norm


def moments(tiles: Tiles, y: Tensor, basis: Tensor | None = None) -> Tensor:
    sums = tiles.sums(y, 2 if basis is None else 3)
    tiles.run("moments", y, y, pixel_weights(basis, y), sums, BASIS=basis is not None)
    return sums


def squeeze(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    basis: Tensor | None,
    eps: float,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    tiles, running = Tiles.of(y), (running_mean, running_var)
    if act == "none":
        mean, variance = vector(y, tiles.n, tiles.c), vector(y, tiles.n, tiles.c)
        raw = vector(y, 2 if basis is None else 3, tiles.n, tiles.c)
        found = moments(tiles, y, basis)
        norm = normalise(tiles, y, found, weight, bias, running, eps, (mean, variance, raw), basis)
        return mean, variance, norm, raw
    norm = normalise(tiles, y, moments(tiles, y) if running_mean is None else None, weight, bias, running, eps)
    sums = tiles.sums(y, 1)
    settings = {"ACT": act, "BASIS": basis is not None, "STORE": False, "POOL": True}
    tiles.run("activate", y, y, norm, pixel_weights(basis, y), None, sums, **settings)
    pooled = sums[0].sum(0)
    return pooled if basis is not None else pooled / tiles.pixels, vector(y, 0), norm, vector(y, 0)


def squeeze_backward(
    masked: Tensor,
    link: Tensor,
    y: Tensor,
    norm: Tensor,
    raw: Tensor,
    grad_mean: Tensor,
    grad_variance: Tensor,
    basis: Tensor | None,
    training: bool,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    tiles, plain, weighted = Tiles.of(y), act == "none", basis is not None
    link, grad_mean, grad_variance = (x.float().contiguous() for x in (link, grad_mean, grad_variance))
    dweight, dbias, through = vector(y, tiles.c), vector(y, tiles.c), vector(y, 2, tiles.c)
    given = (link, grad_mean, grad_variance, raw, basis_sums(basis), norm, dweight, dbias, through)
    shape, count = (tiles.n, tiles.c), float(tiles.n * tiles.pixels)
    tiles.per_channel("squeeze_totals", y, *given, *shape, count, ACT=not plain, BASIS=weighted, TRAINING=training)
    dy = torch.empty_like(y)
    maps = (laid_out(masked, y), y, norm, through, link, grad_mean, grad_variance, raw, pixel_weights(basis, y), dy)
    tiles.run("backward", y, *maps, ACT=act, FACTORS=True, MEAN=True, VARIANCE=plain, BASIS=weighted)
    return dy, dweight, dbias


def scale(y: Tensor, norm: Tensor, weights: Tensor, shortcut: Tensor | None, act: str, relu: bool) -> Tensor:
    y = laid_out(y, y)
    out = torch.empty_like(y)
    given = (norm, floats(weights), None if shortcut is None else laid_out(shortcut, y), out)
    Tiles.of(y).run("scale", y, y, *given, ACT=act, SHORTCUT=shortcut is not None, RELU=relu)
    return out


def scale_backward(
    grad: Tensor,
    out: Tensor,
    y: Tensor,
    norm: Tensor,
    weights: Tensor,
    basis: Tensor | None,
    act: str,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    tiles, plain = Tiles.of(y), act == "none"
    masked = torch.empty_like(y) if relu else y.new_empty(0)
    sums = tiles.sums(y, 2 if plain else 5)
    given = (laid_out(grad, y), laid_out(out, y), y, norm, pixel_weights(basis, y), masked, sums)
    tiles.run("scale_sums", y, *given, ACT=act, BASIS=basis is not None, RELU=relu)
    link, dweights = vector(y, 5, tiles.n, tiles.c), vector(y, tiles.n, tiles.c)
    rows = (sums, floats(weights), norm, link, dweights, tiles.n, tiles.c, tiles.parts)
    start(1, "link_gate", y, (ceil(tiles.n * tiles.c, BLOCK),), *rows, BLOCK=BLOCK, ACT=not plain)
    return masked, link, dweights


def norm_act(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    act: str,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    tiles, running = Tiles.of(y), (running_mean, running_var)
    norm = normalise(tiles, y, moments(tiles, y) if running_mean is None else None, weight, bias, running, eps)
    out, sums = torch.empty_like(y), tiles.sums(y, 1) if pool else None
    tiles.run("activate", y, y, norm, None, out, sums, ACT=act, BASIS=False, STORE=True, POOL=pool)
    return out, vector(y, 0) if sums is None else sums[0].sum(0) / tiles.pixels, norm


def norm_act_backward(
    grad: Tensor, grad_pooled: Tensor | None, y: Tensor, norm: Tensor, training: bool, act: str
) -> tuple[Tensor, Tensor, Tensor]:
    y = laid_out(y, y)
    grad, pooled, pool = laid_out(grad, y), floats(grad_pooled), grad_pooled is not None
    tiles = Tiles.of(y)
    sums = tiles.sums(y, 2)
    tiles.run("activate_sums", y, grad, pooled, y, norm, sums, ACT=act, POOL=pool)
    dweight, dbias, through = vector(y, tiles.c), vector(y, tiles.c), vector(y, 2, tiles.c)
    shape, count = (tiles.n, tiles.c, tiles.parts), float(tiles.n * tiles.pixels)
    tiles.per_channel("activate_totals", y, sums, norm, dweight, dbias, through, *shape, count, TRAINING=training)
    dy = torch.empty_like(y)
    maps = (grad, y, norm, through, None, pooled, None, None, None, dy)
    tiles.run("backward", y, *maps, ACT=act, FACTORS=False, MEAN=pool, VARIANCE=False, BASIS=False)
    return dy, dweight, dbias
