"""Which public classes form a family: one answer for checkpoints, command line and contract tests.

A class belongs to a family when one of the family's packages lists it in `__all__` and it derives
from the family's base class; a new solver, grid or process is a member as soon as it is exported.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, NamedTuple

__all__ = ["FAMILIES", "Family", "classes", "public"]


class Family(NamedTuple):
    """Where a family's members are listed and what they derive from.

    Attributes:
        packages: modules of scoregen whose `__all__` lists the members.
        base: (module, class) that members derive from; None where any class listed is a member.

    >>> FAMILIES["solver"].base
    ('scoregen.sampling', 'Solver')
    """

    packages: tuple[str, ...]
    base: tuple[str, str] | None


FAMILIES = {
    "process": Family(("processes",), ("scoregen.processes", "SDE")),
    "grid": Family(("grids",), None),
    "parameterization": Family(
        ("models.parameterization",), ("scoregen.models", "Parameterization")
    ),
    "clock": Family(("models.clocks",), None),
    "network": Family(("networks",), ("torch.nn", "Module")),
    "solver": Family(("solvers", "mcmc"), ("scoregen.sampling", "Solver")),
    "jump": Family(("flowmaps",), ("scoregen.sampling", "Solver")),
    "metric": Family(("metrics",), None),
    "objective": Family(("objectives",), None),
    "model": Family(("models", "energies", "flowmaps"), ("scoregen.models", "ScoreModel")),
    "span": Family(("flowmaps",), ("scoregen.flowmaps", "AngleSpan")),
}


def public(family: str) -> dict[str, Any]:
    """Everything that the family's packages export, functions and constants included.

    >>> sorted(public("clock"))[0]
    'Clock'
    """
    modules = [import_module(f"scoregen.{name}") for name in FAMILIES[family].packages]
    return {name: getattr(module, name) for module in modules for name in module.__all__}


def classes(family: str) -> dict[str, type]:
    """The concrete public classes of a family, by name.

    Args:
        family: a key of `FAMILIES`.

    >>> "DDIM" in classes("solver"), "Solver" in classes("solver")
    (True, False)
    """
    base = FAMILIES[family].base
    parent = object if base is None else getattr(import_module(base[0]), base[1])
    return {
        name: thing
        for name, thing in public(family).items()
        if isinstance(thing, type)
        and thing.__module__.startswith("scoregen.")
        and issubclass(thing, parent)
        and not inspect.isabstract(thing)
    }
