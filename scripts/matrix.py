"""Tests the declared versions: `python scripts/matrix.py oldest newest --write docs/versions.md`.

For each kind an environment is made by uv and the quick tests are run in it. `oldest` has the lowest versions that pyproject.toml
declares and Python 3.10, `newest` the highest that it allows and Python 3.12, `pinned` those of constraints.txt. The exit status is 1 if
an environment cannot be made or a test fails. It takes about 8 minutes of CPU time for each.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attn.config import scripts
from attn.runs.files import write_atomically
from attn.tabulate import markdown_lines

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "oldest": ["--resolution", "lowest-direct"],
    "newest": ["--upgrade"],
    "pinned": ["--constraint", str(ROOT / "constraints.txt")],
}
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = {"oldest": "3.10", "newest": "3.12", "pinned": HERE}
# What touches the packages most; the attentions' equations do not depend on versions.
TESTS = [
    *(
        "tests/backbones",
        "tests/config",
        "tests/evaluation",
        "tests/kernels",
        "tests/models",
        "tests/runs",
        "tests/training",
    ),
    "tests/modules/test_aw.py",
]
SHOWN = ("python", "torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy")


@dataclass(frozen=True)
class Outcome:
    """One environment: its versions, and what its tests said."""

    kind: str
    versions: dict[str, str]
    passed: int
    failed: int
    problem: str | None = None

    @property
    def verdict(self) -> str:
        return self.problem or (
            f"{self.failed} of {self.passed + self.failed} failed" if self.failed else f"{self.passed} passed"
        )


def try_out(kind: str, python: str, tests: Sequence[str], extra: Sequence[str]) -> Outcome:
    """Makes the environment of a kind in a temporary directory, and runs tests in it."""
    with tempfile.TemporaryDirectory(prefix="attn-matrix-") as folder:
        own = str(Path(folder) / "env" / "bin" / "python")
        steps = [
            [_uv(), "venv", "--quiet", "--python", python, str(Path(folder) / "env")],
            [_uv(), "pip", "install", "--quiet", "--python", own, *KINDS[kind], "--editable", f"{ROOT}[matrix]", *extra],
        ]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                return Outcome(kind, {}, 0, 0, f"not installed: {done.stderr.strip().splitlines()[-1]}")
        versions = versions_of(own)
        command = [own, "-m", "pytest", "-q", "--override-ini", "addopts=", "-m", "not slow", "-n", "2", *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout[-4000:], file=sys.stderr)
        return counted(kind, versions, done.stdout)


def counted(kind: str, versions: dict[str, str], output: str) -> Outcome:
    """An outcome from pytest's last line."""
    numbers = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|error)", output.rpartition("\n=")[2] or output)
    }
    if not numbers:
        return Outcome(kind, versions, 0, 0, "no test ran")
    return Outcome(kind, versions, numbers.get("passed", 0), numbers.get("failed", 0) + numbers.get("error", 0))


def versions_of(python: str) -> dict[str, str]:
    """The versions of what is shown, in an environment."""
    code = "import sys, importlib.metadata as m; print('python', sys.version.split()[0])\n"
    code += f"for name in {SHOWN[1:]!r}: print(name, m.version(name))"
    lines = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split() for line in lines)


def page(outcomes: Sequence[Outcome], tests: Sequence[str], date: str) -> str:
    """The last result, for the docs."""
    chosen = [] if list(tests) == TESTS else ["--tests", *tests]
    command = " ".join(["python scripts/matrix.py", *(o.kind for o in outcomes), "--write docs/versions.md", *chosen])
    rows = [("versions", *SHOWN, "quick tests")]
    rows += [(o.kind, *(o.versions.get(name, "") for name in SHOWN), o.verdict) for o in outcomes]
    return "\n".join(
        [
            "# Versions",
            "",
            "`oldest` are the lowest versions that `pyproject.toml` declares, `newest` the highest that it allows, `pinned` those of"
            " `constraints.txt`, with which the whole suite runs. In each environment the quick tests (not `slow`) of these files and folders ran: "
            + ", ".join(f"`{name}`" for name in tests)
            + ".",
            "",
            *markdown_lines(rows),
            "",
            f"Made on {date} by `{command}`.",
            "",
        ]
    )


def interpreter(text: str) -> tuple[str, str]:
    """KIND=PYTHON as a pair."""
    kind, _, python = text.partition("=")
    if kind not in KINDS or not python:
        raise argparse.ArgumentTypeError(f"{text!r}: write KIND=PYTHON, as in oldest=3.10; kinds are {', '.join(KINDS)}")
    return kind, python


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv") or "uv"


def main() -> int:
    parser = scripts.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=KINDS, help="which environments")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        type=interpreter,
        metavar="KIND=PYTHON",
        help="the interpreter of a kind, a version or a path, as in oldest=/usr/bin/python3.10 (3.10 for oldest, 3.12 for newest)",
    )
    parser.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="install this, too, as in torch==2.6.0",
    )
    parser.add_argument(
        "--tests",
        nargs="+",
        default=TESTS,
        metavar="PATH",
        help="what to run (default: the tests that use other packages most)",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there")
    args = parser.parse_args()
    outcomes = []
    for kind in dict.fromkeys(args.kinds):
        print(f"{kind}: making the environment and running the tests", flush=True)
        outcomes.append(try_out(kind, (PYTHONS | dict(args.python))[kind], args.tests, args.extra))
        print(
            f"{kind}: {outcomes[-1].verdict} ({', '.join(f'{k} {v}' for k, v in outcomes[-1].versions.items())})", flush=True
        )
    if args.write is not None:
        write_atomically(args.write, page(outcomes, args.tests, datetime.date.today().isoformat()))
        print(f"wrote {args.write}")
    return int(any(outcome.failed or outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    scripts.run(main)
