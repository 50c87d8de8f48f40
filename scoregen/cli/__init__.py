"""The command line: train, sample, compare, versus, report, analyse, likelihood, info."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

import tyro

from . import commands, study

__all__ = ["main"]

COMMANDS: dict[str, Callable[..., None]] = {
    **{name: getattr(commands, name) for name in ("train", "sample")},
    **{name: getattr(study, name) for name in ("compare", "versus", "report")},
    **{name: getattr(commands, name) for name in ("analyse", "likelihood", "info")},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of input become one line and exit code 2.

    >>> main(["info", "--checkpoint", "names"])  # doctest: +ELLIPSIS
    process: ...
    0
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(f"scoregen {version('scoregen')}")
        return 0
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="scoregen", description=__doc__, args=given
        )
    except (ValueError, TypeError, ImportError) as error:
        print(f"scoregen: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scoregen: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
