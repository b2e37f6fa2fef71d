"""The forward pass of a whole network, for all families: steps that pass on (map, state), and timm's access to features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from attn.attention import START, State
from attn.backbones.trace import Trace, Traced, run_block

Step = Callable[[tuple[Tensor, State]], tuple[Tensor, State]]


class Network(nn.Module):
    """timm's `forward_features` and `forward_intermediates`; a family's network has it as base class, before timm's.

    A family defines in `steps` what is run, and in `taps` where timm takes its features.

    `last_is_norm`: whether `norm=True` takes the last feature after the last step.
    """

    last_is_norm: bool = False

    def steps(self) -> list[Step]:
        """Everything before pooling and classifier, in order; each step maps (map, state) to (map, state)."""
        raise NotImplementedError(f"{type(self).__name__} does not override steps")

    def taps(self) -> list[int]:
        """For each entry of timm's `feature_info`, the index of the step that computes this feature."""
        raise NotImplementedError(f"{type(self).__name__} does not override taps")

    def feature(self, x: Tensor) -> Tensor:
        """Converts a map in the layout of the steps to the returned feature [N, C, H, W]."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to the map before pooling and classifier, in timm's layout."""
        inputs: tuple[Tensor, State] = (x, START)
        for step in self.steps():
            inputs = step(inputs)
        return inputs[0]

    def trace(self, x: Tensor) -> Trace:
        """`forward_features` that also returns what every block got and gave. Blocks run as modules one by one, nothing is recomputed."""
        inputs: tuple[Tensor, Any] = (x, Traced(START))
        outputs = []
        for step in self.steps():
            inputs = step(inputs)
            outputs.append(inputs[0])
        return Trace(inputs[0], inputs[1].passages, tuple(outputs[i] for i in self.taps()))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The features of a forward pass.

        Args:
            x: images, [N, C, H, W].
            indices: which entries of `feature_info`, from the end where negative; an int for the last so many; None for all.
            norm: take the last feature after the network's last norm, if timm does so.
            stop_early: run nothing after the last requested feature.
            output_fmt: NCHW.
            intermediates_only: leave out the last map.

        Returns:
            The last map as `forward_features` gives it (with `stop_early`, the map where the pass stopped), and the
            features, each [N, C_i, H_i, W_i], in the order of the pass; with `intermediates_only` only these.

        Raises:
            ValueError: `output_fmt` is not NCHW.
            AssertionError: an index that does not exist (timm's check).
        """
        return self.collect(x, self.taps(), indices, norm, stop_early, output_fmt, intermediates_only)

    def collect(
        self,
        x: Tensor,
        taps: list[int],
        indices: int | list[int] | None,
        norm: bool,
        stop_early: bool,
        output_fmt: str,
        intermediates_only: bool,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """`forward_intermediates` with given taps."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: only NCHW exists for {type(self).__name__}")
        take, last = feature_take_indices(len(taps), indices)
        steps = self.steps()
        if norm and self.last_is_norm:
            taps = [*taps[:-1], len(steps) - 1]
        if stop_early and last < len(taps) - 1:
            steps = steps[: taps[last] + 1]
        elif intermediates_only:
            steps = steps[: taps[-1] + 1]
        wanted = {taps[i] for i in take}
        inputs: tuple[Tensor, State] = (x, START)
        found = []
        for i, step in enumerate(steps):
            inputs = step(inputs)
            if i in wanted:
                found.append(self.feature(inputs[0]))
        return found if intermediates_only else (inputs[0], found)


def stateless(module: Callable[[Tensor], Tensor]) -> Step:
    """A step that applies `module` to the map and passes the state on unchanged."""
    return lambda inputs: (module(inputs[0]), inputs[1])


def run_stage(stage: nn.Module, inputs: tuple[Tensor, State], checkpointing: bool) -> tuple[Tensor, State]:
    """Runs the blocks of one stage; with `checkpointing`, each block's activations are recomputed in the backward pass."""
    if not checkpointing and not isinstance(inputs[1], Traced):
        return stage(inputs)
    for block in stage.children():
        inputs = run_block(block, inputs, checkpointing=checkpointing)
    return inputs
