"""Text into objects, without executing anything: `DDIM(eta=0.5)@Karras(20)`.

The names are those of the public classes; arguments are literals, named constants such as HEUN, or
other public classes.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from typing import Any

from .._families import FAMILIES, classes, public
from ..sampling import Sampler

__all__ = ["known_names", "parse", "parse_sampler"]


def _members(families: Iterable[str]) -> dict[str, Any]:
    return {name: thing for family in families for name, thing in public(family).items()}


def known_names(family: str) -> list[str]:
    """Public names of a family that can be built: its concrete classes.

    >>> "DDIM" in known_names("solver")
    True
    """
    return sorted(classes(family))


def parse(text: str, family: str) -> Any:
    """The object that a piece of text names, such as "Karras(20, rho=5)".

    Args:
        text: a public name, or a call of one with literal arguments.
        family: which family it must belong to: solver, grid, process, parameterization, clock,
            metric or network.

    Raises:
        ValueError: for an unknown name (the known ones are listed) or anything but a call.

    >>> parse("Karras(20, rho=5.0)", "grid").rho
    5.0
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not of the form Name(arguments): {error.msg}") from error
    scope = _members(FAMILIES)
    allowed = set(_members([family]))
    root = tree.func if isinstance(tree, ast.Call) else tree
    name = root.value if isinstance(root, ast.Attribute) else root
    if not isinstance(name, ast.Name):
        raise ValueError(f"{text!r} must name a {family}, such as {known_names(family)[0]}(...)")
    if name.id not in allowed:
        known = known_names(family)
        near = difflib.get_close_matches(name.id, known, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"no {family} is called {name.id!r}{hint} Known: {', '.join(known)}.")
    if isinstance(tree, ast.Name | ast.Attribute):
        tree = ast.Call(func=tree, args=[], keywords=[])
    try:
        return _build(tree, scope)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _build(node: ast.expr, scope: dict[str, Any]) -> Any:
    if isinstance(node, ast.Call):
        if any(k.arg is None for k in node.keywords) or any(
            isinstance(a, ast.Starred) for a in node.args
        ):
            raise ValueError("arguments are written out one by one, without * or **")
        maker = _maker(node.func, scope)
        named = {str(k.arg): _build(k.value, scope) for k in node.keywords}
        return maker(*(_build(a, scope) for a in node.args), **named)
    if isinstance(node, ast.Name):
        if node.id == "inf":
            return float("inf")
        if node.id in scope:
            return scope[node.id]
        values = (k for k, v in scope.items() if not callable(v) or isinstance(v, type))
        raise ValueError(f"unknown name {node.id!r}{_nearest(node.id, values)}")
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_build(e, scope) for e in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(
            f"{ast.unparse(node)!r} is neither a literal nor a public name of scoregen"
        ) from None


def _maker(node: ast.expr, scope: dict[str, Any]) -> Any:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = scope.get(node.value.id)
        maker = vars(owner).get(node.attr) if isinstance(owner, type) else None
        if not isinstance(maker, classmethod) or node.attr.startswith("_"):
            raise ValueError(f"{ast.unparse(node)!r} is no constructor of scoregen")
        return getattr(owner, node.attr)
    maker = scope.get(node.id) if isinstance(node, ast.Name) else None
    if not isinstance(maker, type):
        made = (k for k, v in scope.items() if isinstance(v, type))
        raise ValueError(
            f"{ast.unparse(node)!r} is no class of scoregen{_nearest(ast.unparse(node), made)}"
        )
    return maker


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 3, 0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def parse_sampler(text: str) -> tuple[str, Sampler]:
    """A name and a sampler from `[name=]SOLVER@GRID`.

    Raises:
        ValueError: if the text is not of that form, or names nothing known.

    >>> parse_sampler("ours=DDIM(eta=0.5)@Karras(20)")[0]
    'ours'
    >>> parse_sampler("DDIM@Karras(20)")[0]
    'DDIM@Karras'
    """
    label, body = "", text
    head, equals, tail = text.partition("=")
    if equals and head.strip().replace("-", "_").replace("+", "_").isidentifier():
        label, body = head.strip(), tail
    solver, at, grid = body.partition("@")
    if not at:
        raise ValueError(
            f"a sampler is written SOLVER@GRID, such as DDIM(eta=0.5)@Karras(20); got {text!r}"
        )
    # the samplers of flow maps are a family of their own, since they need a map
    family = "jump" if solver.partition("(")[0].strip() in classes("jump") else "solver"
    sampler = Sampler(parse(solver, family), parse(grid, "grid"))
    if not label:
        label = f"{solver.strip()}@{grid.partition('(')[0].strip()}"
    return label, sampler
