"""The command `attn-build`: compiles what is optional and makes things faster, for this machine: `python -m attn.build`.

These are the operators' C++ form for the CPU (attn/kernels/build.py) and the decoder of parts of JPEG files (attn/data/region.py).
"""

from __future__ import annotations

import argparse
import sys

from attn.data import region
from attn.kernels import build


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="compile even if the files exist")
    parser.add_argument("--optional", action="store_true", help="exit status 0 even if something cannot be built")
    options = parser.parse_args()
    whole = True
    for make in (build.build, region.build):
        built, line = make(options.force)
        whole &= built
        print(line, file=sys.stdout if built else sys.stderr)
    return 0 if whole or options.optional else 1


if __name__ == "__main__":
    sys.exit(main())
