"""Triton kernels that pass over a map [N, C, H, W], in either layout.

A program has one sample, BLOCK_C channels and `span` of the pixels, which it takes in tiles [BLOCK_P, BLOCK_C]. A value of
channel i and pixel p of a sample is at p * pixel_stride + i * channel_stride. Sums over pixels are kept per lane of the tile and
added up at the end; each program writes its own, to sums [K, parts, N, C], and `vectors` adds the parts, always in one order.

Vectors are float32; norm [5, C] has the rows centre, scale, bias, 1 / standard deviation, unbiased variance.
"""

import triton
import triton.language as tl

from attn.kernels.cuda.activations import act_slope, act_value

# What differs from one map to the next, and has no use as a constant: fewer kernels are compiled.
VARIABLE = ["pixels", "span"]


@triton.jit
def sample_start(c, pixels):
    """Where the program's sample begins in a map; 64 bits, since maps may have more than 2^31 values."""
    return tl.program_id(0).to(tl.int64) * c * pixels


@triton.jit
def channels(BLOCK_C: tl.constexpr):
    return tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def pixel_range(pixels, span):
    first = tl.program_id(2) * span
    return first, tl.minimum(first + span, pixels)


@triton.jit
def tile(begin, end, i, c, pixel_stride, channel_stride, BLOCK_P: tl.constexpr):
    """Positions [BLOCK_P, BLOCK_C] in a sample, and which of them exist."""
    p = begin + tl.arange(0, BLOCK_P)
    return p[:, None] * pixel_stride + i[None, :] * channel_stride, (p < end)[:, None] & (i < c)[None, :]


@triton.jit
def load_map(x, at, inside):
    return tl.load(x + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_norm(norm, i, c):
    centre = tl.load(norm + i, mask=i < c, other=0.0)
    scale = tl.load(norm + c + i, mask=i < c, other=0.0)
    bias = tl.load(norm + 2 * c + i, mask=i < c, other=0.0)
    return centre[None, :], scale[None, :], bias[None, :]


@triton.jit
def load_row(x, i, c):
    """A vector [N, C] at the program's sample and channels, over the pixels of a tile."""
    return tl.load(x + tl.program_id(0) * c + i, mask=i < c, other=0.0)[None, :]


@triton.jit
def store_sum(sums, kind: tl.constexpr, lanes, i, c):
    """Writes the program's sums [BLOCK_C] of one kind."""
    row = (kind * tl.num_programs(2) + tl.program_id(2)) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + row * c + i, tl.sum(lanes, 0), mask=i < c)


@triton.jit(do_not_specialize=VARIABLE)
def moments(
    y,
    basis,
    sums,
    c,
    pixels,
    pixel_stride,
    channel_stride,
    span,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BASIS: tl.constexpr,
):
    """Sums of d, d^2 and, with a basis [C, H, W], basis * d; d is y minus its first pixel in the sample and channel.

    Sums of y itself would lose the variance where the mean is large.
    """
    i = channels(BLOCK_C)
    y += sample_start(c, pixels)
    origin = load_map(y, i * channel_stride, i < c)[None, :]
    first = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    second = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    weighted = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    start, end = pixel_range(pixels, span)
    for begin in range(start, end, BLOCK_P):
        at, inside = tile(begin, end, i, c, pixel_stride, channel_stride, BLOCK_P)
        d = tl.where(inside, load_map(y, at, inside) - origin, 0.0)
        first += d
        second += d * d
        if BASIS:
            weighted += d * load_map(basis, at, inside)
    store_sum(sums, 0, first, i, c)
    store_sum(sums, 1, second, i, c)
    if BASIS:
        store_sum(sums, 2, weighted, i, c)


@triton.jit(do_not_specialize=VARIABLE)
def activate(
    y,
    norm,
    basis,
    out,
    sums,
    c,
    pixels,
    pixel_stride,
    channel_stride,
    span,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACT: tl.constexpr,
    BASIS: tl.constexpr,
    STORE: tl.constexpr,
    POOL: tl.constexpr,
):
    """act(norm(y)): with STORE the map itself, with POOL its sums, times a basis [C, H, W] with BASIS."""
    i = channels(BLOCK_C)
    place = sample_start(c, pixels)
    centre, scale, bias = load_norm(norm, i, c)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    start, end = pixel_range(pixels, span)
    for begin in range(start, end, BLOCK_P):
        at, inside = tile(begin, end, i, c, pixel_stride, channel_stride, BLOCK_P)
        a = act_value((load_map(y + place, at, inside) - centre) * scale + bias, ACT)
        if STORE:
            tl.store(out + place + at, a, mask=inside)
        if POOL:
            if BASIS:
                a = a * load_map(basis, at, inside)
            total += tl.where(inside, a, 0.0)
    if POOL:
        store_sum(sums, 0, total, i, c)


@triton.jit(do_not_specialize=VARIABLE)
def scale(
    y,
    norm,
    weights,
    shortcut,
    out,
    c,
    pixels,
    pixel_stride,
    channel_stride,
    span,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACT: tl.constexpr,
    SHORTCUT: tl.constexpr,
    RELU: tl.constexpr,
):
    """act(norm(y)) * weights + shortcut, with ReLU or without."""
    i = channels(BLOCK_C)
    place = sample_start(c, pixels)
    centre, factor, shift = load_norm(norm, i, c)
    weight = load_row(weights, i, c)
    start, end = pixel_range(pixels, span)
    for begin in range(start, end, BLOCK_P):
        at, inside = tile(begin, end, i, c, pixel_stride, channel_stride, BLOCK_P)
        value = act_value((load_map(y + place, at, inside) - centre) * factor + shift, ACT) * weight
        if SHORTCUT:
            value += load_map(shortcut + place, at, inside)
        if RELU:
            value = act_value(value, "relu")
        tl.store(out + place + at, value, mask=inside)


@triton.jit(do_not_specialize=VARIABLE)
def scale_sums(
    grad,
    out,
    y,
    norm,
    basis,
    masked,
    sums,
    c,
    pixels,
    pixel_stride,
    channel_stride,
    span,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACT: tl.constexpr,
    BASIS: tl.constexpr,
    RELU: tl.constexpr,
):
    """What the backward pass of `scale` sums. m, the gradient before ReLU, is written too, with RELU.

    Without an activation, m and m * (y - centre). With one, of slope act'(norm(y)): m * slope, m * slope * (y - centre), pooling,
    pooling * (y - centre), m * act(norm(y)); pooling is slope / (H W), or slope * basis.
    """
    i = channels(BLOCK_C)
    place = sample_start(c, pixels)
    centre, factor, shift = load_norm(norm, i, c)
    gradient = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    gradient_off = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    pooled = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    pooled_off = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    weight = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    start, end = pixel_range(pixels, span)
    for begin in range(start, end, BLOCK_P):
        at, inside = tile(begin, end, i, c, pixel_stride, channel_stride, BLOCK_P)
        m = load_map(grad + place, at, inside)
        if RELU:
            m = tl.where(load_map(out + place, at, inside) <= 0, 0.0, m)
            tl.store(masked + place + at, m, mask=inside)
        off = load_map(y + place, at, inside) - centre
        if ACT == "none":
            gradient += m
            gradient_off += m * off
        else:
            z = off * factor + shift
            slope = act_slope(z, ACT)
            pooling = slope * load_map(basis, at, inside) if BASIS else slope / pixels
            pooling = tl.where(inside, pooling, 0.0)
            gradient += m * slope
            gradient_off += m * slope * off
            pooled += pooling
            pooled_off += pooling * off
            weight += m * act_value(z, ACT)
    store_sum(sums, 0, gradient, i, c)
    store_sum(sums, 1, gradient_off, i, c)
    if ACT != "none":
        store_sum(sums, 2, pooled, i, c)
        store_sum(sums, 3, pooled_off, i, c)
        store_sum(sums, 4, weight, i, c)


@triton.jit(do_not_specialize=VARIABLE)
def activate_sums(
    grad,
    grad_pooled,
    y,
    norm,
    sums,
    c,
    pixels,
    pixel_stride,
    channel_stride,
    span,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACT: tl.constexpr,
    POOL: tl.constexpr,
):
    """Sums of dz and dz * (y - centre); dz is the gradient at norm(y), from those of act(norm(y)) and, with POOL, of its mean."""
    i = channels(BLOCK_C)
    place = sample_start(c, pixels)
    centre, factor, shift = load_norm(norm, i, c)
    first = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    second = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    start, end = pixel_range(pixels, span)
    for begin in range(start, end, BLOCK_P):
        at, inside = tile(begin, end, i, c, pixel_stride, channel_stride, BLOCK_P)
        g = load_map(grad + place, at, inside)
        if POOL:
            g += load_row(grad_pooled, i, c) / pixels
        off = load_map(y + place, at, inside) - centre
        dz = tl.where(inside, g * act_slope(off * factor + shift, ACT), 0.0)
        first += dz
        second += dz * off
    store_sum(sums, 0, first, i, c)
    store_sum(sums, 1, second, i, c)


@triton.jit(do_not_specialize=VARIABLE)
def backward(
    grad,
    y,
    norm,
    through,
    factors,
    grad_mean,
    grad_variance,
    raw,
    basis,
    dy,
    c,
    pixels,
    pixel_stride,
    channel_stride,
    span,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACT: tl.constexpr,
    FACTORS: tl.constexpr,
    MEAN: tl.constexpr,
    VARIANCE: tl.constexpr,
    BASIS: tl.constexpr,
):
    """The gradient of y, from that of act(norm(y)) before its factors [N, C], and those of its mean (MEAN) and variance (VARIANCE).

    dy = (grad * factors + grad_mean / (H W)) * slope * scale + offset + step * (y - centre); with BASIS, basis instead of 1 / (H W).
    through [2, C] has offset and step, what passes through the batch's statistics.
    """
    i = channels(BLOCK_C)
    place = sample_start(c, pixels)
    centre, scale, shift = load_norm(norm, i, c)
    offset = tl.load(through + i, mask=i < c, other=0.0)[None, :]
    step = tl.load(through + c + i, mask=i < c, other=0.0)[None, :]
    if VARIANCE:
        own = 2 * load_row(grad_variance, i, c) * scale * scale / pixels
        offset -= own * load_row(raw, i, c)
        step += own
    start, end = pixel_range(pixels, span)
    for begin in range(start, end, BLOCK_P):
        at, inside = tile(begin, end, i, c, pixel_stride, channel_stride, BLOCK_P)
        g = load_map(grad + place, at, inside)
        if FACTORS:
            g *= load_row(factors, i, c)
        if MEAN:
            if BASIS:
                g += load_row(grad_mean, i, c) * load_map(basis, at, inside)
            else:
                g += load_row(grad_mean, i, c) / pixels
        off = load_map(y + place, at, inside) - centre
        dz = g * act_slope(off * scale + shift, ACT)
        tl.store(dy + place + at, dz * scale + offset + step * off, mask=inside)
