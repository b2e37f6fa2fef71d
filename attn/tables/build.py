"""What makes the network of a row, and the command that trains it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from attn.config import groups
from attn.models import spec
from attn.runs.checkpoint import BEST


@dataclass(frozen=True)
class Build:
    """What makes a row's network, and trains it.

    Attributes:
        backbone, attention, data, schedule: choices of the config groups; no schedule in detection.
        detector: config of `detection/configs`, without the ending, which then says everything; None for classification.
        own: what the row overrides, as dotted keys.
        recipe: name of its paper and recipe; `shared`: what that overrides.
        test: what the row sets when the trained network is tested.
        counted: how a detector is counted where not as its config says: options of `detection.count.count`.
        form: name of the form of a detector that is not its config's own; `options`: what it sets with `--cfg-options`.
    """

    backbone: str
    attention: str
    data: str
    schedule: str | None
    detector: str | None
    own: tuple[tuple[str, Any], ...] = ()
    recipe: str = ""
    shared: tuple[tuple[str, Any], ...] = ()
    test: tuple[tuple[str, Any], ...] = ()
    counted: tuple[tuple[str, Any], ...] = ()
    form: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> tuple[tuple[str, Any], ...]:
        """All overrides."""
        return self.own + self.shared

    def command(self) -> str:
        """The command that trains it, and tests it if the row is about testing.

        Runs of one build share a directory, and those of two never do.
        """
        if self.detector is not None:
            command = f"python detection/train.py detection/configs/{self.detector}.py"
            if not self.options:
                return command
            work_dir = f"work_dirs/{self.detector.rpartition('/')[2]}-{self.form}"
            options = shlex.join(
                f"{key}={value if isinstance(value, str) else _hydra(value)}" for key, value in self.options
            )
            return f"{command} --work-dir {work_dir} --cfg-options {options}"
        parts = ["python", "train.py", f"backbone={self.backbone}", f"attention={self.attention}"]
        parts += [f"data={self.data}", f"schedule={self.schedule}", *self.overrides(), f"run_dir={self.run_dir()}"]
        if self.test:
            tested = ["python", "eval.py", f"checkpoint={self.checkpoint()}", *(f"{k}={_hydra(v)}" for k, v in self.test)]
            return f"{shlex.join(parts)} && {shlex.join(tested)}"
        return shlex.join(parts)

    def overrides(self) -> list[str]:
        """The settings in Hydra's grammar; `++` where the choice's file does not have the key."""
        return [f"{'' if self._listed(key) else '++'}{key}={_hydra(value)}" for key, value in self.settings]

    def _listed(self, key: str) -> bool:
        group, *names = key.split(".")
        if group not in ("backbone", "attention"):
            return True
        node: Any = {**(spec.SETTINGS if group == "attention" else {}), **choice(group, getattr(self, group))}
        for name in names:
            if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, Mapping) and name in node:
                node = node[name]
            else:
                return False
        return True

    def run_dir(self) -> str:
        changed = [f"{key.rpartition('.')[2]}_{_hydra(value)}" for key, value in self.own]
        name = "-".join([self.backbone, self.attention, *changed, self.recipe])
        return f"runs/{re.sub(r'[^A-Za-z0-9_.-]+', '_', name.replace('[', '').replace(']', ''))}/seed${{seed}}"

    def checkpoint(self, seed: int = 0) -> str:
        """The best weights that the command leaves."""
        return f"{self.run_dir().replace('${seed}', str(seed))}/{BEST}"

    def mapping(self, group: str) -> dict[str, Any]:
        """The content of `backbone` or `attention`, as the command composes it."""
        node = OmegaConf.create(choice(group, getattr(self, group)))
        for key, value in self.settings:
            head, _, rest = key.partition(".")
            if head == group:
                OmegaConf.update(node, rest, list(value) if isinstance(value, tuple) else value, force_add=True)
        content = OmegaConf.to_container(node)
        assert isinstance(content, dict)
        return {**(spec.SETTINGS if group == "attention" else {}), **{str(k): v for k, v in content.items()}}


@cache
def choice(group: str, name: str) -> dict[str, Any]:
    """The content of a file of `configs/`, which must not be changed: it is read once."""
    return groups.load(group, name)


def _hydra(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_hydra(v) for v in value)}]"
    text = str(value)
    return text if re.fullmatch(r"[A-Za-z0-9_.+-]+", text) else f"'{text}'"
