"""train.py with a fault in one rank's first attempt, for torchrun: `broken_train.py RANK FAULT [ARGUMENTS OF train.py]`.

FAULT is an expression over fault_injection, such as `signal_in_step(4)`.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import fault_injection

if __name__ == "__main__":
    rank, fault, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        eval(fault, vars(fault_injection))()
    script = str(Path(__file__).resolve().parents[2] / "train.py")
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
