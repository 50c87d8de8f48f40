"""Sampling on many ranks: their rows together are the single run, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import SOLVERS, gaussian, grid_for, name, suits
from hypothesis import given
from hypothesis import strategies as st

from scoregen import DDIM, MLP, VPSDE, Sampler, ScoreNetwork, Solver, UniformTime, V
from scoregen.guidance import ClassifierFree
from scoregen.mcmc import RewardSteering
from scoregen.sampling import Sharded, sharded

PLAIN = Sampler(DDIM(), UniformTime(4))
# Dopri5 shares its step among the rows of a batch
ALONE = [s for s in SOLVERS if suits(s, VPSDE()) and type(s).__name__ != "Dopri5"]


@given(batch=st.integers(0, 50), world=st.integers(1, 9))
def test_ranks_divide_a_batch(batch: int, world: int) -> None:
    parts = [list(Sharded(PLAIN, rank, world).rows(batch)) for rank in range(world)]
    assert [row for part in parts for row in part] == list(range(batch))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("solver", ALONE, ids=name)
def test_the_union_of_ranks_is_the_run(solver: Solver) -> None:
    model, sampler = gaussian(VPSDE(), event=(2,)), Sampler(solver, grid_for(solver, VPSDE(), 3))
    whole = sampler.sample(model, (7, 2), seed=5, first=3)
    parts = [sharded(sampler, r, 3).sample(model, (7, 2), seed=5, first=3) for r in range(3)]
    assert [len(part) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat(parts), whole)


def test_what_is_held_per_sample_goes_with_its_rows() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(event=(2,), classes=3)
    model = ClassifierFree(ScoreNetwork(net, VPSDE(), V()), torch.linspace(0.5, 3.0, 8))
    condition = {"label": torch.arange(8) % 3}
    options = {"seed": 1, "condition": condition, "chunk": 2}
    whole = PLAIN.sample(model, (8, 2), **options)
    parts = [sharded(PLAIN, rank, 2).sample(model, (8, 2), **options) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_more_ranks_than_samples_leave_some_without() -> None:
    model = gaussian(VPSDE(), event=(2,))
    parts = [sharded(PLAIN, rank, 4).sample(model, (2, 2)) for rank in range(4)]
    assert [len(part) for part in parts] == [0, 1, 0, 1]
    assert torch.equal(torch.cat(parts), PLAIN.sample(model, (2, 2)))


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be less than world = 2, got 2"):
        sharded(PLAIN, 2, 2)
    with pytest.raises(TypeError, match="sampler must be a Sampler"):
        sharded(DDIM(), 0, 1)  # type: ignore[arg-type]
    steering = Sampler(RewardSteering(DDIM(1.0), lambda x, t: x.sum(1)), UniformTime(4))
    with pytest.raises(ValueError, match="acts on the whole batch"):
        sharded(steering, 0, 2)
    with pytest.raises(ValueError, match="rows needs an integer seed"):
        sharded(PLAIN, 0, 2).sample(
            gaussian(VPSDE(), event=(2,)),
            (4, 2),
            seed=torch.Generator(),  # type: ignore[arg-type]
        )
    with pytest.raises(TypeError, match="rows"):
        sharded(PLAIN, 0, 2).sample(gaussian(VPSDE(), event=(2,)), (4, 2), rows=[0])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_under_torchrun(world: int, tmp_path: Path) -> None:
    out = tmp_path / "verdict"
    worker = Path(__file__).with_name("sharded_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(world), str(worker), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert out.read_text() == f"{world} ranks, equal: True"
