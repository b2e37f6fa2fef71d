"""Turns the weights of the papers' authors, timm or torchvision into a checkpoint.

    python scripts/convert.py --source dcanet --arch se_resnet50 IN OUT

Every tensor of the file has to be one of the network's, and the other way round. With overrides (as of train.py) the
checkpoint is a start for fine-tuning: a model of another attention, or other classes, with the tensors that both have.
Nothing in the file is executed. Exit code 0, or 2 with one line that says what is wrong.
"""

from __future__ import annotations

from pathlib import Path

from attn.config import scripts
from attn.models import convert
from attn.runs.convert import convert_file


def main() -> int:
    parser = scripts.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=convert.CHOICES, help="whose weights they are")
    parser.add_argument("--arch", help="name of the network there; for timm any of its names")
    parser.add_argument("--list", action="store_true", help="print the networks of the sources and stop")
    parser.add_argument("input", nargs="?", type=Path, metavar="IN", help="file of weights (.pth, .pth.tar, .safetensors)")
    parser.add_argument("output", nargs="?", type=Path, metavar="OUT", help="the checkpoint to write, such as best.pt")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="makes a start for fine-tuning, as in attention=ba data=cifar100"
    )
    options = parser.parse_args()
    if options.list:
        for source in convert.SOURCES:
            print(f"{source}: {', '.join(convert.SOURCES[source])}")
        print("timm: every network of its registry that has slots")
        return 0
    needed = {"--source": options.source, "--arch": options.arch, "IN": options.input, "OUT": options.output}
    for name, value in needed.items():
        if value is None:
            parser.error(f"{name} is needed, as in --source dcanet --arch se_resnet50 IN OUT")
    report = convert_file(options.source, options.arch, options.input, options.output, options.overrides)
    for line in report.lines():
        print(line)
    print(f"saved {options.output}")
    return 0


if __name__ == "__main__":
    scripts.run(main)
