"""Networks of other libraries on the command line: ORIGIN:PLACE, as in diffusers:FOLDER."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import tyro

from ..interop import Imported, from_diffusers, from_edm, from_guided_diffusion

__all__ = ["Checkpoint", "Checkpoints", "is_origin", "origin"]

Checkpoint = Annotated[str, tyro.conf.arg(aliases=["--from"])]
Checkpoints = Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--from"])]

ORIGINS: dict[str, Callable[..., Imported]] = {
    "diffusers": from_diffusers,
    "edm": from_edm,
    "guided-diffusion": from_guided_diffusion,
}
ELSEWHERE = ("score_sde", "k-diffusion", "azula", "lucidrains", "velocity")


def is_origin(checkpoint: str) -> bool:
    """Whether a checkpoint is written ORIGIN:PLACE.

    Raises:
        ValueError: for an origin that is not known.

    >>> is_origin("diffusers:pipeline"), is_origin("runs/digits/model")
    (True, False)
    """
    name, colon, _ = checkpoint.partition(":")
    if not colon or name in ORIGINS:
        return bool(colon)
    known = ", ".join(f"{origin}:PLACE" for origin in ORIGINS)
    if name in ELSEWHERE:
        raise ValueError(
            f"{name} states its networks in Python, not in a file: import it there, as in "
            f"scoregen.interop, and save it; the command line reads {known}"
        )
    near = difflib.get_close_matches(name, ORIGINS, 1, 0.6)
    hint = f", did you mean {near[0]}:" if near else ""
    raise ValueError(f"no origin is called {name!r}{hint}; known are a folder, {known}.")


@cache
def origin(checkpoint: str) -> Imported:
    """The imported network; arguments of its importer stand in brackets behind the place.

    Args:
        checkpoint: such as "diffusers:FOLDER", "diffusers:hub:OWNER/NAME", which alone downloads,
            "edm:FILE" or "guided-diffusion:FILE(head_channels=64, event=(3, 64, 64))".

    Raises:
        ValueError: for arguments that are no constants by name.

    >>> origin("edm:absent.pkl")
    Traceback (most recent call last):
        ...
    FileNotFoundError: no file absent.pkl; nothing is downloaded: fetch it first
    """
    name, _, place = checkpoint.partition(":")
    place, bracket, rest = place.partition("(")
    if not place:
        raise ValueError(f"{checkpoint!r} names no place: write {name}:PLACE")
    given: dict[str, Any] = {}
    if bracket:
        try:
            call = ast.parse(f"f({rest}", mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError("arguments need names")
            given = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        except (SyntaxError, ValueError) as error:
            raise ValueError(
                f"cannot read {checkpoint!r}: {error}; write {name}:PLACE(name=value, ...)"
            ) from None
    return ORIGINS[name](place, **given)
