"""Settings shared by every test: hypothesis profiles, one thread, untouched global generators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# "ci" finds the same examples on every machine; "nightly" looks for new ones.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    print_blob=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly", derandomize=False, deadline=None, print_blob=True, max_examples=500
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Workers of pytest-xdist share the cores; more threads each would slow all of them down.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device; skipped without one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


_Generators = tuple[torch.Tensor, Any]
STATES = pytest.StashKey[_Generators]()


def _generators() -> _Generators:
    return torch.get_rng_state(), np.random.get_state()  # noqa: NPY002


# Hooks and not a fixture, which would cost twice as much in each of ten thousand tests.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STATES] = _generators()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a test that moved a global generator, and put the state back for the next one."""
    yield
    before, after = item.stash[STATES], _generators()
    same = {
        "torch": torch.equal(before[0], after[0]),
        "numpy": before[1][2:] == after[1][2:] and bool((before[1][1] == after[1][1]).all()),
    }
    moved = [name for name, stayed in same.items() if not stayed]
    if not moved:
        return
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    if item.get_closest_marker("moves_global_rng") is None:
        pytest.fail(
            f"the global {' and '.join(moved)} generator must stay where it was, and this test "
            "moved it: pass a torch.Generator or a seed, build networks inside "
            "torch.random.fork_rng(), or mark the test `moves_global_rng` where the movement is "
            "the test's own"
        )


@pytest.fixture
def own_generator() -> Iterator[None]:
    """Networks draw their first weights from the global generator, here from a copy of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def accelerate() -> Iterator[Any]:
    """The package, whose settings of a process are forgotten before and afterwards."""
    package = pytest.importorskip("accelerate")
    package.state.AcceleratorState._reset_state(True)
    yield package
    package.state.AcceleratorState._reset_state(True)
