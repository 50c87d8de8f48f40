"""Every mutant still applies; `make mutants` sees that the suite kills it."""

from __future__ import annotations

import pytest
from cases import benchmark

mutants = benchmark("checks/mutants")


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_its_text_occurs_exactly_once(mutant) -> None:
    assert mutants.problem(mutant) is None
    assert mutant.old != mutant.new


def test_names_differ() -> None:
    names = [mutant.name for mutant in mutants.MUTANTS]
    assert len(names) == len(set(names))
