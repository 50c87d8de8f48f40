"""Blocks of "Networks of other libraries" that need other packages or files: `py`, not `python`."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import scoregen as sg

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "other-libraries.md"
BLOCK = re.compile(r"^```(python|py)\n(.*?)^```", re.M | re.S)
ORIGINS = Path(__file__).parent / "data" / "origins"
# Downloads of the reader's, the tiny files in their places, and what these differ in.
FILES = {
    "edm-cifar10-32x32-cond-vp.pkl": ("ddpmpp-vp.pkl.gz", {}),
    "checkpoint_24.pth": (
        "song-ve.pth.gz",
        {
            "width=128": "width=8", "mults=(1, 2, 2, 2)": "mults=(1, 2)", "blocks=4": "blocks=1",
            "attention=(False, True, False, False)": "attention=(False, True)",
        },
    ),
    "64x64_diffusion.pt": ("guided.pt.gz", {"head_channels=64": "head_channels=4"}),
}  # fmt: skip


def program() -> str:
    """Every block in order, but for those that read a file."""
    blocks = [body for _, body in BLOCK.findall(PAGE.read_text())]
    return "\n".join(body for body in blocks if not any(name in body for name in FILES))


@pytest.mark.parametrize("name", FILES)
def test_the_blocks_that_read_files_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, changes = FILES[name]
    (tmp_path / name).write_bytes(gzip.decompress((ORIGINS / source).read_bytes()))
    (body,) = [body for _, body in BLOCK.findall(PAGE.read_text()) if name in body]
    for page, small in changes.items():
        assert page in body
        body = body.replace(page, small)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"interop": sg.interop, "sg": sg, "torch": torch}
    with torch.random.fork_rng():
        exec(body, scope)
    assert torch.isfinite(scope["images"]).all()
    assert len(scope["images"]) == 2


def test_one_section_for_each_importer() -> None:
    import scoregen.interop as interop

    text = PAGE.read_text()
    missing = [name for name in interop.__all__ if name[:5] in ("from_", "as_di", "as_az", "as_k_")
               and name not in text]  # fmt: skip
    assert missing == []
    assert sum(language == "py" for language, _ in BLOCK.findall(text)) == 5


@pytest.mark.peers
def test_the_whole_page_runs_where_diffusers_is(tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(PAGE.parents[2])!r})\n" + program())
    done = subprocess.run(
        [sys.executable, path.name], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
