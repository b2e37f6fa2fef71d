"""The recipes: what each sets, and its learning rate drawn over the epochs."""

from __future__ import annotations

import io
from typing import Any

from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure

from attn.config import groups, parse
from attn.tabulate import markdown_lines
from attn.training.optim import learning_rate

STEPS = 20  # per epoch, enough for a smooth curve
USUAL = "backbone=resnet50 attention=ba"
# What a recipe was made for, where that is not the usual pairing on ImageNet.
EXAMPLES = {
    "aw": "backbone=resnet50 attention=aw",
    "ba2m_cifar100": "backbone=cifar_resnet50 attention=ba2m data=cifar100",
    "ba2m_imagenet": "backbone=resnet50 attention=ba2m",
    "ba_net_efficientnet": "backbone=efficientnet_b0 attention=ba",
    "ba_v2": "backbone=resnet50 attention=ba_v2",
    "dcanet_mobile": "backbone=mobilenetv2_100 attention=dca_se",
    "dcanet_mobile_paper": "backbone=mobilenetv2_100 attention=dca_se",
    "dcanet_resnet": "backbone=resnet50 attention=dca_se",
    "dcanet_resnet_paper": "backbone=resnet50 attention=dca_se",
    "quick": "backbone=resnet18 attention=ba data=digits",
}


def table() -> str:
    """What each recipe changes beside the default, and its picture."""
    default = groups.load("schedule", "default")
    parts = []
    for name in groups.names("schedule"):
        content = {key: value for key, value in groups.load("schedule", name).items() if key not in ("defaults", "name")}
        changed = {key: value for key, value in content.items() if name == "default" or default.get(key) != value}
        text = (groups.config_dir() / "schedule" / f"{name}.yaml").read_text()
        remark = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        rows = [("key", "value"), *((f"`schedule.{key}`", f"`{_value(value)}`") for key, value in changed.items())]
        parts += [
            f"## {name}",
            remark,
            f"```bash\npython train.py {EXAMPLES.get(name, USUAL)} schedule={name}\n```",
            f"![Learning rate of the recipe {name} over its epochs](images/schedule_{name}.svg)",
            "\n".join(markdown_lines(rows)),
        ]
    return "\n\n".join(part for part in parts if part)


def pictures() -> dict[str, str]:
    """The learning-rate curve of each recipe as SVG, by its path on the site."""
    found = {}
    with initialize_config_dir(str(groups.config_dir()), version_base="1.3"):
        for name in groups.names("schedule"):
            schedule = parse.parse(compose("train", [f"schedule={name}"])).schedule
            epochs = schedule.epochs + (schedule.warmup_epochs if schedule.warmup_mode == "before" else 0)
            rates = [learning_rate(schedule, step, STEPS) for step in range(epochs * STEPS)]
            found[f"images/schedule_{name}.svg"] = _draw(name, [step / STEPS for step in range(len(rates))], rates)
    return found


def _draw(name: str, epochs: list[float], rates: list[float]) -> str:
    drawing = Figure(figsize=(5.2, 1.9), layout="constrained")
    axes = drawing.subplots()
    axes.plot(epochs, rates, color="#00695c")
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, max(rates) * 1.08), xlim=(0, max(epochs) + 1 / STEPS))
    axes.spines[["top", "right"]].set_visible(False)
    target = io.StringIO()
    drawing.savefig(target, format="svg", metadata={"Date": None, "Title": f"Learning rate of {name}"})
    return target.getvalue()


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
