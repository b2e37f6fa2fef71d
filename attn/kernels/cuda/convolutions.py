"""Triton kernels of a convolution whose filters are scaled per sample and tap, as matrix products without a matrix in memory.

Names: x [N, C1, H, W], y and grad [N, C2, H2, W2] in either layout (a value of channel i and pixel p of a sample is at p *
pixel_stride + i * channel_stride); weight [C2, taps, C1 / groups]; factors [N, taps, C2]. A geometry is (kernel's width, stride,
padding, dilation), each of the last three for rows and columns. A channel of a group is numbered from the group's first.
"""

import triton
import triton.language as tl


@triton.jit
def block_of(number, size, BLOCK: tl.constexpr):
    """Of the blocks of all groups: the group, and the numbers of the block's channels in it."""
    blocks = tl.cdiv(size, BLOCK)
    return number // blocks, number % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def source(p, tap, height, width, columns, GEOMETRY: tl.constexpr):
    """The pixel of x that a tap reads for output pixel p, and whether it exists."""
    row = p // columns * GEOMETRY[1] - GEOMETRY[3] + tap // GEOMETRY[0] * GEOMETRY[5]
    column = p % columns * GEOMETRY[2] - GEOMETRY[4] + tap % GEOMETRY[0] * GEOMETRY[6]
    return row * width + column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def target(q, tap, width, rows, columns, GEOMETRY: tl.constexpr):
    """The output pixel for which a tap reads pixel q of x, and whether it exists."""
    row = q // width + GEOMETRY[3] - tap // GEOMETRY[0] * GEOMETRY[5]
    column = q % width + GEOMETRY[4] - tap % GEOMETRY[0] * GEOMETRY[6]
    whole = (row >= 0) & (column >= 0) & (row % GEOMETRY[1] == 0) & (column % GEOMETRY[2] == 0)
    row, column = row // GEOMETRY[1], column // GEOMETRY[2]
    return row * columns + column, whole & (row < rows) & (column < columns)


@triton.jit
def load_tile(x, rows, rows_inside, columns, columns_inside):
    return tl.load(x + rows[:, None] + columns[None, :], mask=rows_inside[:, None] & columns_inside[None, :], other=0.0)


@triton.jit
def forward(
    x,
    weight,
    factors,
    y,
    c1,
    c2,
    groups,
    height,
    width,
    rows,
    columns,
    x_pixel,
    x_channel,
    y_pixel,
    y_channel,
    TAPS: tl.constexpr,
    GEOMETRY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y: the sum over taps of factor * (x shifted by the tap) times the tap's weights. c1 and c2 are channels of a group.

    A program has BLOCK_P pixels of a sample and BLOCK_C of its output channels. Taps and blocks of input channels are one loop, so that
    the next tiles are loaded during a product.
    """
    n = tl.program_id(0)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    group, o = block_of(tl.program_id(2), c2, BLOCK_C)
    x += n.to(tl.int64) * groups * c1 * height * width + group * c1 * x_channel
    y += n.to(tl.int64) * groups * c2 * rows * columns
    filters = group * c2 + o
    steps = tl.cdiv(c1, BLOCK_K)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(TAPS * steps):
        tap = step // steps
        k = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        at, seen = source(p, tap, height, width, columns, GEOMETRY)
        a = load_tile(x, at * x_pixel, seen & (p < rows * columns), k * x_channel, k < c1)
        b = load_tile(weight, k, k < c1, (filters * TAPS + tap) * c1, o < c2)
        factor = tl.load(factors + (n * TAPS + tap) * groups * c2 + filters, mask=o < c2, other=0.0)
        total += tl.dot(a, b, input_precision=PRECISION) * factor[None, :]
    at = p[:, None] * y_pixel + filters[None, :] * y_channel
    tl.store(y + at, total, mask=(p < rows * columns)[:, None] & (o < c2)[None, :])


@triton.jit
def backward_input(
    grad,
    weight,
    factors,
    dx,
    c1,
    c2,
    groups,
    height,
    width,
    rows,
    columns,
    x_pixel,
    x_channel,
    y_pixel,
    y_channel,
    TAPS: tl.constexpr,
    GEOMETRY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dx: the sum over taps of (factor * grad shifted back by the tap) times the tap's weights, as `forward`."""
    n = tl.program_id(0)
    q = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    group, i = block_of(tl.program_id(2), c1, BLOCK_C)
    grad += n.to(tl.int64) * groups * c2 * rows * columns
    dx += n.to(tl.int64) * groups * c1 * height * width
    steps = tl.cdiv(c2, BLOCK_K)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(TAPS * steps):
        tap = step // steps
        k = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        filters = group * c2 + k
        at, seen = target(q, tap, width, rows, columns, GEOMETRY)
        a = load_tile(grad, at * y_pixel, seen & (q < height * width), filters * y_channel, k < c2)
        b = load_tile(weight, (filters * TAPS + tap) * c1, k < c2, i, i < c1)
        factor = tl.load(factors + (n * TAPS + tap) * groups * c2 + filters, mask=k < c2, other=0.0)
        scaled = (a.to(tl.float32) * factor[None, :]).to(b.dtype)
        total += tl.dot(scaled, b, input_precision=PRECISION)
    at = q[:, None] * x_pixel + (group * c1 + i)[None, :] * x_channel
    tl.store(dx + at, total, mask=(q < height * width)[:, None] & (i < c1)[None, :])


@triton.jit
def backward_filters(
    grad,
    x,
    weight,
    factors,
    dweight,
    dfactors,
    n,
    span,
    c1,
    c2,
    groups,
    height,
    width,
    rows,
    columns,
    x_pixel,
    x_channel,
    y_pixel,
    y_channel,
    TAPS: tl.constexpr,
    GEOMETRY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradients of weight and factors, from one product per sample, the gradient of the sample's own filters.

    A program has `span` samples, a tap, BLOCK_O filters and BLOCK_C of their input channels. It writes its own parts of the sums,
    dweight [samples / span, C2, taps, c1] and dfactors [blocks of c1, N, taps, C2].
    """
    blocks = tl.cdiv(c1, BLOCK_C)
    block = tl.program_id(1) % blocks
    tap = tl.program_id(1) // blocks
    i = block * BLOCK_C + tl.arange(0, BLOCK_C)
    group, o = block_of(tl.program_id(2), c2, BLOCK_O)
    filters = group * c2 + o
    at = (filters[:, None] * TAPS + tap) * c1 + i[None, :]
    inside = (o < c2)[:, None] & (i < c1)[None, :]
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    first = tl.program_id(0) * span
    for sample in range(first, tl.minimum(first + span, n)):
        own_grad = grad + tl.cast(sample, tl.int64) * groups * c2 * rows * columns
        own_x = x + tl.cast(sample, tl.int64) * groups * c1 * height * width
        product = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
        for begin in range(0, rows * columns, BLOCK_K):
            p = begin + tl.arange(0, BLOCK_K)
            there = p < rows * columns
            g = load_tile(own_grad, filters * y_channel, o < c2, p * y_pixel, there)
            pixel, seen = source(p, tap, height, width, columns, GEOMETRY)
            a = load_tile(own_x, pixel * x_pixel, seen & there, (group * c1 + i) * x_channel, i < c1)
            product = tl.dot(g, a, product, input_precision=PRECISION)
        row = (sample * TAPS + tap) * groups * c2 + filters
        factor = tl.load(factors + row, mask=o < c2, other=0.0)
        total += product * factor[:, None]
        tl.store(dfactors + block * n * TAPS * groups * c2 + row, tl.sum(product * w, 1), mask=o < c2)
    part = tl.program_id(0).to(tl.int64) * groups * c2 * TAPS * c1
    tl.store(dweight + part + at, total, mask=inside)
