#!/usr/bin/env python
"""Do the tests notice small mistakes? Each mutant of mutants.yaml is one; its tests must fail with it.

    python scripts/mutants.py                  # all of them, a few seconds each; prints the score and names the survivors
    python scripts/mutants.py loop-lr data-    # those whose name begins so
    python scripts/mutants.py --check          # only whether every mutant still fits the code

Everything happens in a temporary copy of the checkout, changed files that are not committed included. First the tests of all
chosen mutants must pass there unchanged. A mutant is killed when its tests fail, or run for longer than --timeout seconds.
The exit code is 1 if one survives.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "scripts" / "mutants.yaml"
PASSED, FAILED, TIMEOUT = 0, 1, 124


@dataclass(frozen=True)
class Mutant:
    """A mistake: in `file` the string `old`, which occurs once, becomes `new`. `tests` (pytest's node ids) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str


def load(path: Path = DATA) -> list[Mutant]:
    """All mutants.

    Raises:
        ValueError: two have the same name.
    """
    mutants = [Mutant(**{**raw, "tests": tuple(raw["tests"])}) for raw in yaml.safe_load(path.read_text())]
    names = [mutant.name for mutant in mutants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: two mutants have the name {name}; rename one")
    return mutants


def problems(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """What no longer fits the code, one line each."""
    found = []
    for mutant in mutants:
        path = root / mutant.file
        times = path.read_text().count(mutant.old) if path.is_file() else None
        if times is None:
            found.append(f"{mutant.name}: {mutant.file} does not exist")
        elif times != 1:
            found.append(f"{mutant.name}: its old text occurs {times} times in {mutant.file}, expected once: {mutant.old!r}")
        if mutant.old == mutant.new:
            found.append(f"{mutant.name}: old and new text are the same")
        for test in mutant.tests:
            file, _, function = test.partition("::")
            if not (root / file).is_file() or f"def {function.partition('[')[0]}(" not in (root / file).read_text():
                found.append(f"{mutant.name}: no test {test}")
    return found


def copy_checkout(target: Path) -> None:
    """What git tracks or would track."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(copy: Path, tests: Sequence[str], output: Path, timeout: float, *options: str) -> int:
    """pytest's exit code, or TIMEOUT. Runs in a fork of this process, which has imported torch, but nothing of the copy."""
    shutil.rmtree(copy / ".hypothesis", ignore_errors=True)  # failures of another mutant
    child = os.fork()
    if child == 0:
        code = 3
        try:
            os.setsid()
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.chdir(copy)
            sys.path[:] = [str(copy), *(entry for entry in sys.path if entry != str(ROOT / "scripts"))]
            temporary = tempfile.mkdtemp(dir=copy.parent)
            os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": temporary}
            sys.dont_write_bytecode = True  # two mutants within a second would share a file
            tempfile.tempdir = None
            found = importlib.util.find_spec("attn")
            assert str(found and found.origin).startswith(str(copy)), f"attn is not the copy's: {found}"
            import pytest

            code = int(pytest.main([*tests, "-q", "-p", "no:cacheprovider", *options]))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end, code = time.monotonic() + timeout, TIMEOUT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code == TIMEOUT:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
    return code


def those_that_can_run(mutants: Sequence[Mutant]) -> tuple[list[Mutant], list[Mutant]]:
    """The mutants whose tests can be imported, and those that need MMDetection where it is not installed."""
    if importlib.util.find_spec("mmdet") is not None:  # only looked for: its import here could bring attn of this checkout
        return list(mutants), []
    needy = [mutant for mutant in mutants if any(test.startswith("tests/detection/") for test in mutant.tests)]
    return [mutant for mutant in mutants if mutant not in needy], needy


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; all mutants by default")
    parser.add_argument(
        "--check", action="store_true", help="run no test, only look whether every mutant still fits the code"
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of a mutant (default 300)")
    args = parser.parse_args()

    mutants = [mutant for mutant in load() if not args.names or mutant.name.startswith(tuple(args.names))]
    if not mutants:
        parser.error(f"no mutant's name begins with {' or '.join(args.names)}")
    wrong = problems(mutants)
    if wrong:
        sys.exit("\n".join(f"error: {line}" for line in wrong))
    if args.check:
        print(f"{len(mutants)} mutants fit the code")
        return

    mutants, left_out = those_that_can_run(mutants)
    if left_out:
        print(
            f"not run, because the detection extra is not installed: {', '.join(mutant.name for mutant in left_out)}",
            flush=True,
        )
    if not mutants:
        sys.exit("error: nothing to run")
    for package in ("pytest", "hypothesis", "hydra", "timm", "torchvision"):
        importlib.import_module(package)  # once, and not in every fork

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy, output = Path(folder) / "checkout", Path(folder) / "output.txt"
        copy_checkout(copy)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        code = run_tests(copy, tests, output, args.timeout * len(tests))
        if code != PASSED:
            sys.exit(f"{output.read_text()}\nerror: the tests do not pass without a mutant (pytest ends with {code})")
        print(f"{len(tests)} tests pass without a mutant", flush=True)
        survivors, failures = [], []
        for mutant in mutants:
            path = copy / mutant.file
            original = path.read_text()
            path.write_text(original.replace(mutant.old, mutant.new))
            start = time.monotonic()
            try:
                code = run_tests(copy, mutant.tests, output, args.timeout, "-x")
            finally:
                path.write_text(original)
            verdict = {PASSED: "SURVIVED", FAILED: "killed", TIMEOUT: "killed (time)"}.get(code)
            if verdict is None:
                verdict = f"ERROR (pytest ends with {code})"
                failures.append(mutant)
                print(output.read_text()[-2000:])
            elif code == PASSED:
                survivors.append(mutant)
            print(f"{verdict:<14}{mutant.name:<34}{time.monotonic() - start:5.1f} s  {mutant.why}", flush=True)
    killed = len(mutants) - len(survivors) - len(failures)
    print(f"{killed} of {len(mutants)} mutants killed: {100 * killed / len(mutants):.1f} %")
    for mutant in survivors:
        print(f"survived: {mutant.name} ({mutant.file}: {mutant.why})")
    if survivors or failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
