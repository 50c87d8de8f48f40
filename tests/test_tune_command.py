"""`scoregen tune`: it prints, writes, and refuses before work starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scoregen import MLP, VPSDE, ScoreNetwork, V, load, save
from scoregen.cli.tune import tune
from scoregen.training import CheckpointError
from scoregen.tuning import load_sampler


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    with torch.random.fork_rng():
        model = ScoreNetwork(MLP((2,), hidden=8, depth=1, classes=2), VPSDE(), V())
    return str(save(model, tmp_path / "net", event=(2,)))


def test_it_writes_a_sampler_that_its_network_accepts(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "three.json"
    tune(checkpoint, nfe=2, label=(0, 1), trajectories=24, out=out, device="cpu")
    shown = capsys.readouterr().out
    assert "held out: RMS" in shown
    assert str(out) in shown
    model = load(checkpoint)
    sampler = load_sampler(out, model)
    x = sampler.sample(model, (3, 2), condition={"label": torch.tensor([0, 1, 1])})
    assert x.shape == (3, 2)
    assert json.loads(out.read_text())["card"]["condition"] == {"label": [0, 1]}


def test_bad_input_is_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="guidance needs"):
        tune(checkpoint, guidance=2.0, out=tmp_path / "a.json")
    with pytest.raises(ValueError, match="nfe"):
        tune(checkpoint, nfe=1, out=tmp_path / "a.json")
    with pytest.raises(CheckpointError):
        tune(str(tmp_path / "nowhere"), out=tmp_path / "a.json")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="written"):
        tune(checkpoint, out=blocked / "a.json", trajectories=24)
