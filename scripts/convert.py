"""Turns the weights of the papers' authors, timm or torchvision into a checkpoint, and any checkpoint into a start for fine-tuning.

    python scripts/convert.py --source dcanet --arch se_resnet50 IN OUT
    python scripts/convert.py --source attn best.pt start.pt data=cifar100

Every tensor of the file has to be one of the network's, and the other way round. With overrides (as of train.py) the
checkpoint is a start for fine-tuning: a model of another attention, or other classes, with the tensors that both have. With
`--source attn`, IN is a checkpoint of this project, a folder of `attn.save_pretrained` or hf-hub:organisation/name.
Nothing in the file is executed. Exit code 0, or 2 with one line that says what is wrong.
"""

from __future__ import annotations

from pathlib import Path

from attn.config import scripts
from attn.models import convert
from attn.runs.convert import OWN, convert_file, convert_own


def main() -> int:
    parser = scripts.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source", choices=(OWN, *convert.CHOICES), help="whose weights they are; attn: a checkpoint of this project"
    )
    parser.add_argument("--arch", help="name of the network there; for timm any of its names, for attn none")
    parser.add_argument("--list", action="store_true", help="print the networks of the sources and stop")
    parser.add_argument(
        "input", nargs="?", metavar="IN", help="file of weights (.pth, .pth.tar, .safetensors), or what attn.load takes"
    )
    parser.add_argument("output", nargs="?", type=Path, metavar="OUT", help="the checkpoint to write, such as best.pt")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="makes a start for fine-tuning, as in attention=ba data=cifar100"
    )
    parser.add_argument(
        "--trust", nargs="+", default=[], metavar="MODULE", help="modules that a checkpoint of --source attn may name"
    )
    options = parser.parse_args()
    if options.list:
        for source in convert.SOURCES:
            print(f"{source}: {', '.join(convert.SOURCES[source])}")
        print("timm: every network of its registry that has slots")
        return 0
    needed = {"--source": options.source, "--arch": options.arch, "IN": options.input, "OUT": options.output}
    if options.source == OWN:
        del needed["--arch"]
    for name, value in needed.items():
        if value is None:
            parser.error(f"{name} is needed, as in --source dcanet --arch se_resnet50 IN OUT")
    if options.source == OWN:
        if options.arch is not None:
            parser.error(f"--arch {options.arch} is of other sources: a checkpoint of attn says which network it is of")
        report = convert_own(options.input, options.output, options.overrides, options.trust)
    else:
        report = convert_file(options.source, options.arch, Path(options.input), options.output, options.overrides)
    for line in report.lines():
        print(line)
    print(f"saved {options.output}")
    return 0


if __name__ == "__main__":
    scripts.run(main)
