"""The blocks of "Bring your network" that need other packages: `py`, not `python`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bring-your-network.md"
BLOCK = re.compile(r"^```(python|py)\n(.*?)^```", re.M | re.S)
FILE = "edm-cifar10-32x32-cond-vp.pkl"  # a download of the reader's


def program() -> str:
    """Every block in order, but for the one that reads a file which is not here."""
    return "\n".join(body for _, body in BLOCK.findall(PAGE.read_text()) if FILE not in body)


def test_one_section_for_each_importer() -> None:
    import scoregen.interop as interop

    text = PAGE.read_text()
    missing = [name for name in interop.__all__ if name[:5] in ("from_", "as_di", "as_az", "as_k_")
               and name not in text]  # fmt: skip
    assert missing == []
    assert sum(language == "py" for language, _ in BLOCK.findall(text)) == 3


@pytest.mark.peers
def test_the_whole_page_runs_where_diffusers_is(tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(PAGE.parents[1])!r})\n" + program())
    done = subprocess.run(
        [sys.executable, path.name], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
