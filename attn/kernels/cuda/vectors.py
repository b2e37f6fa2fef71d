"""Triton kernels on vectors [N, C] and [C]: what is between two passes over a map. Names are as in `maps`."""

import triton
import triton.language as tl

VARIABLE = ["n", "pixels", "parts"]


@triton.jit
def add_parts(sums, kind: tl.constexpr, row, n, c, parts, inside):
    """The sums of one kind at rows of [N, C], over all parts."""
    sums += kind * parts * n * c
    total = tl.load(sums + row, mask=inside, other=0.0)
    for part in range(1, parts):
        total += tl.load(sums + part * n * c + row, mask=inside, other=0.0)
    return total


@triton.jit
def moments_at(sums, y, row, sample, i, n, c, pixels, channel_stride, parts, inside):
    """First pixel, mean and variance of y [BLOCK_N, BLOCK_C], from the sums of `maps.moments`."""
    at = sample.to(tl.int64)[:, None] * c * pixels + i[None, :] * channel_stride
    origin = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    off = add_parts(sums, 0, row, n, c, parts, inside) / pixels
    variance = add_parts(sums, 1, row, n, c, parts, inside) / pixels - off * off
    return origin, origin + off, tl.where(variance < 0, 0.0, variance)


@triton.jit
def samples(first, i, n, c, BLOCK_N: tl.constexpr):
    """Samples from number `first`, their rows in [N, C], and which exist."""
    sample = first + tl.arange(0, BLOCK_N)
    return sample, sample[:, None] * c + i[None, :], (sample < n)[:, None] & (i < c)[None, :]


@triton.jit(do_not_specialize=VARIABLE)
def statistics(
    sums,
    y,
    weight,
    bias,
    running_mean,
    running_var,
    basis_sums,
    norm,
    mean,
    variance,
    raw,
    n,
    c,
    pixels,
    channel_stride,
    parts,
    eps,
    unbias,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RUNNING: tl.constexpr,
    SQUEEZE: tl.constexpr,
    BASIS: tl.constexpr,
):
    """Batch norm's vectors; with SQUEEZE also mean, variance and raw, as `attn.kernels.reference.squeeze` gives them.

    A program has BLOCK_C channels of all samples. unbias is count / (count - 1).
    """
    i = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    if RUNNING:
        centre = tl.load(running_mean + i, mask=i < c, other=0.0)
        spread = tl.load(running_var + i, mask=i < c, other=1.0)
    else:
        lanes = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
        for first in range(0, n, BLOCK_N):
            sample, row, inside = samples(first, i, n, c, BLOCK_N)
            _, m, _ = moments_at(sums, y, row, sample, i, n, c, pixels, channel_stride, parts, inside)
            lanes += tl.where(inside, m, 0.0)
        centre = tl.sum(lanes, 0) / n
        lanes = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
        for first in range(0, n, BLOCK_N):
            sample, row, inside = samples(first, i, n, c, BLOCK_N)
            _, m, v = moments_at(sums, y, row, sample, i, n, c, pixels, channel_stride, parts, inside)
            off = m - centre[None, :]
            lanes += tl.where(inside, v + off * off, 0.0)
        spread = tl.sum(lanes, 0) / n
    inverse = 1 / tl.sqrt(spread + eps)
    scale = tl.load(weight + i, mask=i < c, other=0.0) * inverse
    shift = tl.load(bias + i, mask=i < c, other=0.0)
    tl.store(norm + i, centre, mask=i < c)
    tl.store(norm + c + i, scale, mask=i < c)
    tl.store(norm + 2 * c + i, shift, mask=i < c)
    tl.store(norm + 3 * c + i, inverse, mask=i < c)
    tl.store(norm + 4 * c + i, spread * unbias, mask=i < c)
    if SQUEEZE:
        for first in range(0, n, BLOCK_N):
            sample, row, inside = samples(first, i, n, c, BLOCK_N)
            origin, m, v = moments_at(sums, y, row, sample, i, n, c, pixels, channel_stride, parts, inside)
            off = m - centre[None, :]
            if BASIS:
                total = tl.load(basis_sums + i, mask=i < c, other=0.0)[None, :]
                pooled = add_parts(sums, 2, row, n, c, parts, inside) + (origin - centre[None, :]) * total
                tl.store(raw + 2 * n * c + row, pooled, mask=inside)
                tl.store(mean + row, pooled * scale[None, :] + total * shift[None, :], mask=inside)
            else:
                tl.store(mean + row, off * scale[None, :] + shift[None, :], mask=inside)
            tl.store(variance + row, v * (scale * scale)[None, :], mask=inside)
            tl.store(raw + row, off, mask=inside)
            tl.store(raw + n * c + row, v, mask=inside)


@triton.jit(do_not_specialize=VARIABLE)
def link_gate(sums, weights, norm, link, dweights, n, c, parts, BLOCK: tl.constexpr, ACT: tl.constexpr):
    """From the sums of `maps.scale_sums`: link [5, N, C], of which the last two rows are used only with ACT, and dweights [N, C]."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n * c
    gradient = add_parts(sums, 0, row, n, c, parts, inside)
    gradient_off = add_parts(sums, 1, row, n, c, parts, inside)
    tl.store(link + row, tl.load(weights + row, mask=inside, other=0.0), mask=inside)
    tl.store(link + n * c + row, gradient, mask=inside)
    tl.store(link + 2 * n * c + row, gradient_off, mask=inside)
    if ACT:
        tl.store(link + 3 * n * c + row, add_parts(sums, 2, row, n, c, parts, inside), mask=inside)
        tl.store(link + 4 * n * c + row, add_parts(sums, 3, row, n, c, parts, inside), mask=inside)
        dweight = add_parts(sums, 4, row, n, c, parts, inside)
    else:
        scale = tl.load(norm + c + row % c, mask=inside, other=0.0)
        shift = tl.load(norm + 2 * c + row % c, mask=inside, other=0.0)
        dweight = gradient_off * scale + gradient * shift
    tl.store(dweights + row, dweight, mask=inside)


@triton.jit
def store_norm_gradients(first, second, norm, i, c, count, dweight, dbias, through, TRAINING: tl.constexpr):
    """From the sums of dz and dz * (y - centre) [C]: the gradients of weight and bias, and what y gets through the statistics."""
    scale = tl.load(norm + c + i, mask=i < c, other=0.0)
    inverse = tl.load(norm + 3 * c + i, mask=i < c, other=0.0)
    tl.store(dbias + i, first, mask=i < c)
    tl.store(dweight + i, second * inverse, mask=i < c)
    factor = tl.zeros_like(scale)
    if TRAINING:
        factor -= scale / count
    tl.store(through + i, factor * first, mask=i < c)
    tl.store(through + c + i, factor * inverse * inverse * second, mask=i < c)


@triton.jit(do_not_specialize=VARIABLE)
def squeeze_totals(
    link,
    grad_mean,
    grad_variance,
    raw,
    basis_sums,
    norm,
    dweight,
    dbias,
    through,
    n,
    c,
    count,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACT: tl.constexpr,
    BASIS: tl.constexpr,
    TRAINING: tl.constexpr,
):
    """Batch norm's gradients after `squeeze` and `scale`, from link [5, N, C] and the gradients of mean and variance."""
    i = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    dz = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    dz_off = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    scale = tl.load(norm + c + i, mask=i < c, other=0.0)[None, :]
    for first in range(0, n, BLOCK_N):
        _, row, inside = samples(first, i, n, c, BLOCK_N)
        weights = tl.load(link + row, mask=inside, other=0.0)
        pooled = tl.load(grad_mean + row, mask=inside, other=0.0)
        dz += weights * tl.load(link + n * c + row, mask=inside, other=0.0)
        dz_off += weights * tl.load(link + 2 * n * c + row, mask=inside, other=0.0)
        if ACT:
            dz += pooled * tl.load(link + 3 * n * c + row, mask=inside, other=0.0)
            dz_off += pooled * tl.load(link + 4 * n * c + row, mask=inside, other=0.0)
        else:
            if BASIS:
                dz += pooled * tl.load(basis_sums + i, mask=i < c, other=0.0)[None, :]
                dz_off += pooled * tl.load(raw + 2 * n * c + row, mask=inside, other=0.0)
            else:
                dz += pooled
                dz_off += pooled * tl.load(raw + row, mask=inside, other=0.0)
            spread = tl.load(grad_variance + row, mask=inside, other=0.0)
            dz_off += 2 * spread * scale * tl.load(raw + n * c + row, mask=inside, other=0.0)
    store_norm_gradients(tl.sum(dz, 0), tl.sum(dz_off, 0), norm, i, c, count, dweight, dbias, through, TRAINING)


@triton.jit(do_not_specialize=VARIABLE)
def activate_totals(
    sums,
    norm,
    dweight,
    dbias,
    through,
    n,
    c,
    parts,
    count,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TRAINING: tl.constexpr,
):
    """Batch norm's gradients after `norm_act`, from the sums of `maps.activate_sums`."""
    i = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    dz = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    dz_off = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for first in range(0, n, BLOCK_N):
        _, row, inside = samples(first, i, n, c, BLOCK_N)
        dz += add_parts(sums, 0, row, n, c, parts, inside)
        dz_off += add_parts(sums, 1, row, n, c, parts, inside)
    store_norm_gradients(tl.sum(dz, 0), tl.sum(dz_off, 0), norm, i, c, count, dweight, dbias, through, TRAINING)
