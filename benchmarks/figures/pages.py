"""Run the pages: every `python` block of a page, in order, as one program in an empty folder.

    python benchmarks/figures/pages.py              # every page with Python, compared with what it shows
    python benchmarks/figures/pages.py --write NAME # the same for pages whose path holds NAME, and write it

A `text` block right after a `python` block is what that block prints. The picture
`![words](../_static/pages/name.svg)` is the one that the program saves as name.svg.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PICTURES = DOCS / "_static" / "pages"

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.M | re.S
)
PICTURE = re.compile(r"!\[[^\]]+\]\([\w./-]*_static/pages/([\w.-]+)\)")
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[-+]\d+)?(?![\w.])")
MARK = "\x1e"  # printed between blocks


class Run(NamedTuple):
    """What the program of a page printed, block by block, and the folder it wrote to."""

    printed: list[str]
    folder: Path


def program(text: str) -> str:
    """The blocks of a page as one program that marks their ends."""
    codes = [match["code"] for match in BLOCK.finditer(text)]
    return "".join(f"{code}print({MARK!r}, end='', flush=True)\n" for code in codes)


def run(text: str, folder: Path) -> Run:
    """Run the program of a page in a folder; an error of it is ours."""
    path = folder / "page.py"
    path.write_text(program(text))
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {
        "PYTHONPATH": paths,
        "MPLBACKEND": "Agg",
        "MATPLOTLIBRC": str(DOCS / "matplotlibrc"),
        "SOURCE_DATE_EPOCH": "0",  # no date in pictures
        "OMP_NUM_THREADS": "1",  # sums of several threads differ in their last digits
    }
    command = [sys.executable, path.name]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Run(done.stdout.split(MARK)[:-1], folder)


def close(old: str, new: str) -> bool:
    """Equal up to blanks, and to the last digits of the numbers with a point."""
    before, after = NUMBER.findall(old), NUMBER.findall(new)
    same = " ".join(NUMBER.sub("#", old).split()) == " ".join(NUMBER.sub("#", new).split())
    return same and all(
        math.isclose(float(a), float(b), rel_tol=0.05, abs_tol=0.011)
        for a, b in zip(before, after, strict=True)
    )


def differences(text: str, found: Run) -> list[str]:
    """What the page shows and its program no longer prints or draws."""
    wrong = []
    for match, printed in zip(BLOCK.finditer(text), found.printed, strict=True):
        if match["printed"] is not None and not close(match["printed"], printed):
            wrong.append(f"the page has\n{match['printed']}printed is\n{printed}")
    drawn = {path.name for path in found.folder.iterdir()}
    return wrong + [f"{name} is not drawn" for name in PICTURE.findall(text) if name not in drawn]


def rewritten(text: str, found: Run) -> str:
    """The page with what its blocks print now."""
    printed = iter(found.printed)

    def block(match: re.Match[str]) -> str:
        now = "\n".join(line.rstrip() for line in next(printed).strip("\n").splitlines())
        shown = "" if match["printed"] is None else f"\n```text\n{now}\n```\n"
        return f"```python\n{match['code']}```\n{shown}"

    return BLOCK.sub(block, text)


def pages() -> list[Path]:
    """The README and the pages that show Python."""
    every = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    kept = [path for path in every if "_build" not in path.parts]
    return [path for path in kept if BLOCK.search(path.read_text())]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of the paths of the pages to run")
    parser.add_argument("--write", action="store_true", help="write what is printed and drawn")
    options = parser.parse_args()
    failed = False
    for path in pages():
        name = str(path.relative_to(ROOT))
        if options.names and not any(part in name for part in options.names):
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            text = path.read_text()
            found = run(text, Path(folder))
            wrong = differences(text, found)
            if options.write:
                path.write_text(rewritten(text, found))
                for picture in set(PICTURE.findall(text)):
                    shutil.copy(found.folder / picture, PICTURES / picture)
        print(f"{name}: {time.perf_counter() - began:.0f} s", *wrong, sep="\n", flush=True)
        failed |= bool(wrong) and not options.write
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
