"""Compiles the operators' C++ form for this machine's CPU: `python -m attn.kernels.build`.

The file is written to the user's cache folder ($XDG_CACHE_HOME/attn, else ~/.cache/attn), under a name that depends on
source, flags and CPU: another version or another machine in a cluster never loads it. Nothing is compiled at any other time.
It takes seconds, and needs a C++ compiler with OpenMP (CXX, else g++, c++ or clang++) but not torch's own headers.
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
from collections.abc import Callable, Sequence
from pathlib import Path

SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "scaled_conv.cpp"))
# No fast-math: a NaN must pass through ReLU as it does in torch. GCC contracts a * b + c to one instruction by itself.
FLAGS = ("-O2", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=fast", "-Wno-psabi")


def library_path() -> Path:
    """The path of the compiled form of these sources for this CPU, whether it exists or not."""
    return cached_path("cpu", SOURCES, FLAGS)


def cached_path(name: str, sources: Sequence[Path], depends_on: Sequence[str]) -> Path:
    """Where sources are compiled to: a name that depends on them, on this CPU and on more, such as the flags."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = "\n".join([*(source.read_text() for source in sources), *depends_on, cpu_features()])
    return cache / "attn" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


def cpu_features() -> str:
    """A string with the CPU features that -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("vendor_id", "model\t", "model name", "flags", "CPU implementer", "CPU part", "Features")
    first = {line.partition(":")[0]: line for line in reversed(lines) if line.startswith(wanted)}
    return "\n".join([platform.machine(), *sorted(first.values())])


def compiler() -> list[str] | None:
    """The command of a C++ compiler: CXX if set, else the first that is installed."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        return chosen if shutil.which(chosen[0]) else None
    return next(([name] for name in ("g++", "c++", "clang++") if shutil.which(name)), None)


def build(force: bool = False) -> tuple[bool, str]:
    """Compiles the C++ form if it does not exist yet.

    Args:
        force: compile even if it exists.

    Returns:
        Whether the form exists, and one line that says what was done, or why not.
    """
    path = library_path()
    if path.exists() and not force:
        return True, f"kernels: {path} exists already"
    return compile_to(path, SOURCES, FLAGS, (), "kernels", "the reference form is used")


def compile_to(
    path: Path,
    sources: Sequence[Path],
    flags: Sequence[str],
    libraries: Sequence[str],
    what: str,
    without: str,
    check: Callable[[Path], str | None] = lambda _: None,
) -> tuple[bool, str]:
    """Compiles sources to a shared library.

    Args:
        path: where it is written, whole or not at all.
        sources: C++ files.
        flags, libraries: the compiler's arguments before and after the files.
        what: what is built, for the line.
        without: what is used where it cannot be built, for the line.
        check: why a library that was compiled must not be used; None if it may.

    Returns:
        Whether it was built, and one line that says so, or why not.
    """
    command = compiler()
    if command is None:
        tried = os.environ.get("CXX") or "g++, c++ and clang++"
        return False, f"{what}: not built, no C++ compiler found ({tried}); {without}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # First written under a temporary name: other processes see either no file or a finished one.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            target = Path(folder) / path.name
            arguments = [*flags, *map(str, sources), "-o", str(target), *libraries]
            done = subprocess.run([*command, *arguments], capture_output=True, text=True)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit status {done.returncode}"]
                return False, f"{what}: not built, {command[0]} failed: {lines[0].strip()}; {without}"
            problem = check(target)
            if problem is not None:
                return False, f"{what}: not built, {problem}; {without}"
            os.replace(target, path)
    except OSError as error:
        return False, f"{what}: not built, {error}; {without}"
    return True, f"{what}: built {path} with {command[0]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="compile even if the file exists")
    parser.add_argument(
        "--optional", action="store_true", help="exit status 0 if it cannot be built: the reference form is used"
    )
    options = parser.parse_args()
    built, line = build(options.force)
    print(line, file=sys.stdout if built else sys.stderr)
    return 0 if built or options.optional else 1


if __name__ == "__main__":
    sys.exit(main())
