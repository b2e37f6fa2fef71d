"""torch.export of a folded network, its file (.pt2), and the AOTInductor package made of it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attn.errors import UserError, reason
from attn.export.about import FILE, KEY

BATCHES = (1, 3, 8)  # with which a file is checked that takes any batch
TOLERANCE = 1e-4
LIMIT = 1024  # images in a batch, where torch.export requires a limit
LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.utils._pytree", "torch.utils.cpp_extension")


@contextmanager
def quietly() -> Iterator[None]:
    """Without what the exporters print and log below errors: it concerns their own passes, and a user can do nothing about it."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def program(model: nn.Module, images: Tensor, any_batch: bool) -> torch.export.ExportedProgram:
    """The exported program of a network in evaluation mode.

    Args:
        model: takes images [N, C, H, W].
        images: an example, of two images or more if `any_batch`: with one, the number would be taken for a constant.
        any_batch: whether N may be any number (with older versions of torch, up to `LIMIT`); else it is that of the example.

    Raises:
        UserError: torch.export cannot follow it.
    """
    # torch 2.6 refuses a size without an upper limit.
    sizes = [torch.export.Dim("batch"), torch.export.Dim("batch", max=LIMIT)] if any_batch else [None]
    first: Exception | None = None
    for size in sizes:
        try:
            with quietly(), torch.no_grad():
                return torch.export.export(model, (images,), dynamic_shapes=None if size is None else ({0: size},))
        except Exception as error:  # as many kinds as there are reasons
            first = first or error
    assert first is not None
    raise UserError(f"torch.export cannot follow this network: {reason(first)[:300]}") from first


def write_pt2(exported: torch.export.ExportedProgram, about: str, path: Path) -> None:
    with quietly():
        torch.export.save(exported, path, extra_files={FILE: about})


def read_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    with quietly():
        return torch.export.load(path).module()


def write_aoti(exported: torch.export.ExportedProgram, about: str, path: Path) -> None:
    """Compiles for this machine's processor.

    Raises:
        UserError: it cannot be compiled, for example for the lack of a C++ compiler.
    """
    import torch._inductor

    try:
        with quietly():
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs={"aot_inductor.metadata": {KEY: about}}
            )
    except Exception as error:
        raise UserError(f"format=aoti: AOTInductor cannot compile this network: {reason(error)[:300]}") from error


def read_aoti(path: Path) -> Callable[[Tensor], Tensor]:
    import torch._inductor

    return torch._inductor.aoti_load_package(str(path))


@torch.no_grad()
def check(
    model: nn.Module, run: Callable[[Tensor], Tensor], image: tuple[int, ...], batch_size: int | None, what: str
) -> float:
    """The largest difference between a file and the network that it was made of, on random images.

    Args:
        model: the network, in evaluation mode.
        run: runs the file.
        image: shape of an image, (C, H, W).
        batch_size: of the file; None: several are tried.
        what: the file, for the message.

    Raises:
        UserError: the difference is above 1e-4, relative to the largest output where this is above 1.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for count in BATCHES if batch_size is None else (batch_size,):
        images = torch.randn(count, *image, generator=generator)
        expected = model(images)
        found: Any = run(images)
        difference = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        if not difference <= TOLERANCE:  # nor a NaN
            raise UserError(f"{what} differs from the network by {difference:.1e} with {count} images: it was not kept")
        worst = max(worst, difference)
    return worst
