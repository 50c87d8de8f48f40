"""Break the code on purpose, one slip at a time, and see that the suite notices.

    make mutants        (or: python benchmarks/mutants.py [-k NAME] [-j N])

Each mutant of mutants.json replaces one piece of text, which must occur exactly once, in a
temporary copy of the package; the working tree is never touched. The named tests run there until
the first failure.
Exits with 1 when a mutant survives, or no longer applies.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis  # noqa: F401
import pytest
import scipy.integrate  # noqa: F401
import torch  # noqa: F401
import torchdiffeq  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """One slip: `old` becomes `new` in a file of the package, and the tests must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


LIST = Path(__file__).with_suffix(".json")
MUTANTS = [Mutant(**row) for row in json.loads(LIST.read_text())]


def problem(mutant: Mutant) -> str | None:
    """Why a mutant cannot be applied, if it cannot."""
    path = ROOT / "scoregen" / mutant.file
    count = path.read_text().count(mutant.old) if path.is_file() else 0
    missing = [t for t in mutant.tests.split() if not (ROOT / "tests" / f"{t}.py").is_file()]
    if missing:
        return f"tests/{missing[0]}.py does not exist"
    return None if count == 1 else f"its text occurs {count} times in scoregen/{mutant.file}"


def survives(mutant: Mutant) -> bool:
    """Whether the named tests pass on a copy of the repository with the mutant in it.

    Runs once in a process of its own, which then holds the broken package.
    """
    sys.stdout.flush()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with tempfile.TemporaryDirectory() as folder:
        house = Path(folder)
        for part in ("scoregen", "tests"):
            shutil.copytree(ROOT / part, house / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", house)
        path = house / "scoregen" / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        os.chdir(house)
        sys.path.insert(0, str(house))
        sys.dont_write_bytecode = True
        tests = [f"tests/{test}.py" for test in mutant.tests.split()]
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
        used = str(getattr(sys.modules.get("scoregen"), "__file__", house))
    if not used.startswith(str(house)) or code not in (0, 1, 2):
        raise RuntimeError(f"pytest could not run {tests} on the copy: exit {code}, {used}")
    return code == 0


def verdict(mutant: Mutant) -> str:
    return problem(mutant) or ("SURVIVED" if survives(mutant) else "killed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", metavar="NAME", help="only mutants whose name holds this")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="mutants at a time")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.k in mutant.name]
    failed = 0
    # forks of this process, one for each mutant: the libraries are imported once
    with multiprocessing.get_context("fork").Pool(options.j, maxtasksperchild=1) as pool:
        for mutant, word in zip(chosen, pool.imap(verdict, chosen, chunksize=1), strict=True):
            failed += word != "killed"
            print(f"{word:10s} {mutant.name}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} killed")
    return int(failed > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main())
