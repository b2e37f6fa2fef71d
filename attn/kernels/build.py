"""Compiles the operators' C++ form for this machine's CPU: `python -m attn.kernels.build`.

The file lands in the user's cache folder ($XDG_CACHE_HOME/attn, else ~/.cache/attn), under a name that tells source, flags,
compiler and CPU apart: another version or another machine in a cluster never loads it. Nothing is compiled at any other time.
It takes seconds, and needs a C++ compiler with OpenMP (CXX, else g++, c++ or clang++) but nothing of torch's own headers.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu.cpp")
# No fast-math: a NaN must pass through ReLU as it does in torch. GCC contracts a * b + c to one instruction by itself.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=fast")


def library_path() -> Path:
    """Where the compiled form of this source for this CPU is, or would be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = "\n".join([SOURCE.read_text(), *FLAGS, cpu_features()])
    return cache / "attn" / f"cpu-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def cpu_features() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("vendor_id", "model\t", "model name", "flags", "CPU implementer", "CPU part", "Features")
    first = {line.partition(":")[0]: line for line in reversed(lines) if line.startswith(wanted)}
    return "\n".join([platform.machine(), *sorted(first.values())])


def compiler() -> list[str] | None:
    """The command of a C++ compiler: that of CXX, else the first that is installed."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        return chosen if shutil.which(chosen[0]) else None
    return next(([name] for name in ("g++", "c++", "clang++") if shutil.which(name)), None)


def build(force: bool = False) -> tuple[bool, str]:
    """Compiles, unless it has been done.

    Args:
        force: also if it has been done.

    Returns:
        Whether the form is there, and one line that says what was done, or why not.
    """
    path = library_path()
    if path.exists() and not force:
        return True, f"kernels: {path} is there"
    command = compiler()
    if command is None:
        tried = os.environ.get("CXX") or "g++, c++ and clang++"
        return False, f"kernels: not built, no C++ compiler found ({tried}); the reference form serves"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own first: whoever else builds or loads sees a finished file or none.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            target = Path(folder) / path.name
            done = subprocess.run([*command, *FLAGS, str(SOURCE), "-o", str(target)], capture_output=True, text=True)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit status {done.returncode}"]
                return False, f"kernels: not built, {command[0]} failed: {lines[0].strip()}; the reference form serves"
            os.replace(target, path)
    except OSError as error:
        return False, f"kernels: not built, {error}; the reference form serves"
    return True, f"kernels: built {path} with {command[0]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="compile even if it has been done")
    parser.add_argument(
        "--optional", action="store_true", help="exit status 0 where it cannot be built: the reference form serves"
    )
    options = parser.parse_args()
    built, line = build(options.force)
    print(line, file=sys.stdout if built else sys.stderr)
    return 0 if built or options.optional else 1


if __name__ == "__main__":
    sys.exit(main())
