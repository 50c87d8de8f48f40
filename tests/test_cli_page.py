"""The page of the command line: every command on it runs, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from scoregen.cli import COMMANDS, main

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "how-to" / "command-line.md").read_text()


def commands() -> list[list[str]]:
    lines = re.findall(r"^\$ (scoregen .*)$", PAGE, flags=re.M)
    return [shlex.split(line)[1:] for line in lines]


def test_every_command_is_shown() -> None:
    assert {words[0] for words in commands()} == set(COMMANDS)


@pytest.mark.slow
def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands():
        assert main(words) == 0, (words, capsys.readouterr().err)
    runs = tmp_path / "runs"
    left = {"cells", "quality.png", "report.html", "results.csv", "results.json", "samples.png"}
    assert {p.name for p in (runs / "study").iterdir()} == left | {"table.md"}
    assert (runs / "sevens" / "samples.npy").exists()
    assert (runs / "exact" / "analysis.md").exists()
