"""What happens while the device works: the next batch is fetched and copied to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attn.data.loader import Batch


class Ahead:
    """Batches; on a GPU the next one is fetched and copied while the device still works on the last one.

    Args:
        batches: on the host, in pinned memory for a GPU; closed by `close` if it is a generator.
        device: where they will be used.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._fetched: Batch | Exception | None = None

    def __iter__(self) -> Ahead:
        return self

    def __next__(self) -> Batch:
        """The next batch; on a GPU it is there when the current stream gets to it."""
        if self._fetched is None:
            self.fetch()
        batch = next(self._batches) if self._stream is None else self._fetched
        self._fetched = None
        if isinstance(batch, Exception):
            raise batch
        assert batch is not None
        if self._stream is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_stream(self._stream)
            for tensor in (batch.images, batch.labels):
                tensor.record_stream(stream)  # its memory belongs to the other stream
        return batch

    def fetch(self) -> None:
        """Fetches the next batch and begins to copy it; to be called once the work on the last one is queued.

        An error, or the end, is kept until that batch is asked for. On the CPU nothing works meanwhile, and nothing is fetched.
        """
        if self._stream is None or self._fetched is not None:
            return
        try:
            batch = next(self._batches)
            with torch.cuda.stream(self._stream):
                images, labels = (t.to(self._device, non_blocking=True) for t in (batch.images, batch.labels))
            self._fetched = batch._replace(images=images, labels=labels)
        except Exception as error:
            self._fetched = error

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()


class Readback:
    """Values on their way from the device to the host: what is queued on the device after this call does not delay them."""

    def __init__(self, values: torch.Tensor) -> None:
        self._host, self._done = values, None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def wait(self) -> list[float]:
        """The values, as soon as they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._host.tolist()
