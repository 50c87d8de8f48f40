"""Break the code on purpose, one slip at a time, and see that the suite notices.

    make mutants                    the checked-in list, mutants.json
    make mutants-random SEED=1      fresh ones, drawn at random
    python benchmarks/checks/mutants.py [-k NAME] [-j N] [--random SEED] [--count N]

Each mutant replaces one piece of text in a temporary copy of the package; the working tree is never
touched. The named tests run there until the first failure. A random mutant swaps an operator, a
comparison or a bound, drops a minus or a `not`, or moves a number; the tests are the doctests of
its file and the test files that use what the file defines, those that use it most first. A survivor
is printed with its line: either a test is missing, or the change has no effect (0 * x for a
coefficient that is zero); the second kind is for the reader to judge.
Exits with 1 when a mutant survives, or no longer applies.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import random
import re
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

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """One slip: `old` becomes `new` in a file of the package, and the tests must fail.

    `at` is the place of `old` in the file where the text occurs more than once; -1 where it is
    the only one.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    at: int = -1


LIST = Path(__file__).with_suffix(".json")
MUTANTS = [Mutant(**row) for row in json.loads(LIST.read_text())]


def problem(mutant: Mutant) -> str | None:
    """Why a mutant cannot be applied, if it cannot."""
    if mutant.at >= 0:
        return None
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
        copy = Path(folder)
        for part in ("scoregen", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / "scoregen" / mutant.file
        text = path.read_text()
        at = mutant.at if mutant.at >= 0 else text.index(mutant.old)
        path.write_text(text[:at] + mutant.new + text[at + len(mutant.old) :])
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True
        tests = [f"tests/{test}.py" for test in mutant.tests.split()]
        if mutant.at >= 0:
            tests.insert(0, f"scoregen/{mutant.file}")
        # libraries are imported before the fork, too early for pytest to rewrite them
        early = "ignore::pytest.PytestAssertRewriteWarning"
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", early, *tests])
        used = str(getattr(sys.modules.get("scoregen"), "__file__", copy))
    if not used.startswith(str(copy)) or code not in (0, 1, 2, 4):
        raise RuntimeError(f"pytest could not run {tests} on the copy: exit {code}, {used}")
    return code == 0


# Random mutants: files whose numbers matter, and the slips that people make.

PACKAGES = (
    "processes", "noise", "grids", "models", "densities", "sampling", "solvers", "guidance",
    "energies", "inverse", "mcmc", "likelihood", "analysis", "objectives", "metrics", "flowmaps",
    "tuning", "data", "training",
)  # fmt: skip
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*",
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
}  # fmt: skip
SWAPPED = {
    "sin": "cos", "cos": "sin", "exp": "expm1", "expm1": "exp", "log": "log1p", "log1p": "log",
    "min": "max", "max": "min", "amin": "amax", "amax": "amin", "sqrt": "abs", "cumsum": "cumprod",
    "sinh": "cosh", "mean": "sum",
}  # fmt: skip


def _offset(lines: list[str], line: int, column: int) -> int:
    before = sum(len(text) for text in lines[: line - 1])
    return before + len(lines[line - 1].encode()[:column].decode())


def slips(source: str) -> list[tuple[int, str, str]]:
    """(place, old text, new text) of every slip that could be made in a file."""
    lines = source.splitlines(keepends=True)
    tree = ast.parse(source)
    skip: set[int] = set()
    for node in ast.walk(tree):
        # messages, annotations and defaults of names are not mathematics
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Subscript):
            inner = node.slice if isinstance(node, ast.Subscript) else node
            skip |= {id(child) for child in ast.walk(inner)}
        for field in ("annotation", "returns"):
            if (kind := getattr(node, field, None)) is not None:
                skip |= {id(child) for child in ast.walk(kind)}
    found = []

    def span(node: ast.expr) -> tuple[int, int]:
        return (
            _offset(lines, node.lineno, node.col_offset),
            _offset(lines, node.end_lineno or 0, node.end_col_offset or 0),
        )

    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            # the operator stands between its sides, up to brackets and blanks
            start, stop = span(node.left)[1], span(node.right)[0]
            match = re.search(r"\*\*|[-+*/]", source[start:stop])
            if match:
                found.append((start + match.start(), match[0], OPERATORS[type(node.op)]))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            start, stop = span(node.left)[1], span(node.comparators[0])[0]
            match = re.search(r"[<>=!]=?", source[start:stop])
            if match:
                found.append((start + match.start(), match[0], COMPARISONS[type(node.ops[0])]))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            start, stop = span(node)[0], span(node.operand)[0]
            found.append((start, source[start:stop], "(" * source[start:stop].count("(")))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            start, stop = span(node)
            found.append((start, source[start:stop], repr(node.value + 1)))
        elif isinstance(node, ast.Attribute) and node.attr in SWAPPED:
            stop = span(node)[1]
            found.append((stop - len(node.attr), node.attr, SWAPPED[node.attr]))
    return found


def tests_of(file: Path) -> str:
    """The test files of the package, by their names, and those that use what the file defines.

    The ones that use it most come first.
    """
    tree = ast.parse(file.read_text())
    names = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    pattern = re.compile(r"\b(" + "|".join(re.escape(name) for name in names) + r")\b")
    uses = {path.stem: len(pattern.findall(path.read_text())) for path in TESTS} if names else {}
    used = sorted((stem for stem in uses if uses[stem]), key=lambda stem: -uses[stem])
    package = file.relative_to(ROOT / "scoregen").parts[0]
    own = [path.stem for path in TESTS if path.stem.startswith(f"test_{package[:4]}")]
    return " ".join(dict.fromkeys([*used[:6], *own, "test_contracts"]))


TESTS = sorted((ROOT / "tests").glob("test_*.py"))


def draw(seed: int, count: int) -> list[Mutant]:
    """Mutants drawn at random, weighted by the number of places where a file can break."""
    every = []
    for package in PACKAGES:
        for file in sorted((ROOT / "scoregen" / package).rglob("*.py")):
            source = file.read_text()
            name = str(file.relative_to(ROOT / "scoregen"))
            every += [(name, at, old, new) for at, old, new in slips(source)]
    mutants = []
    for name, at, old, new in random.Random(seed).sample(every, count):
        source = (ROOT / "scoregen" / name).read_text()
        line = source.count("\n", 0, at) + 1
        shown = source.splitlines()[line - 1].strip()
        title = f"{name}:{line} {old.strip() or old!r} -> {new or 'nothing'}   in   {shown}"
        mutants.append(Mutant(title, name, old, new, tests_of(ROOT / "scoregen" / name), at))
    return mutants


def verdict(mutant: Mutant) -> str:
    return problem(mutant) or ("SURVIVED" if survives(mutant) else "killed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", metavar="NAME", help="only mutants whose name holds this")
    parser.add_argument("-j", type=int, default=2, metavar="N", help="mutants at a time")
    parser.add_argument("--random", type=int, metavar="SEED", help="fresh ones instead of the list")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="how many fresh ones")
    options = parser.parse_args()
    drawn = MUTANTS if options.random is None else draw(options.random, options.count)
    chosen = [mutant for mutant in drawn if options.k in mutant.name]
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
