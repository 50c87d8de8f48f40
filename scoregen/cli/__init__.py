"""The command line: train, sample, compare, versus, report, tune, analyse, likelihood, info."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

import tyro

from .._checks import DivergenceError
from ..training import TrainingError
from . import commands, study, tune

__all__ = ["main"]

COMMANDS: dict[str, Callable[..., None]] = {
    **{name: getattr(commands, name) for name in ("train", "sample")},
    **{name: getattr(study, name) for name in ("compare", "versus", "report")},
    "tune": tune.tune,
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
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"scoregen: {error}", file=sys.stderr)
        return 2
    except (DivergenceError, TrainingError) as error:
        print(f"scoregen: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"scoregen: interrupted{_resumable(given)}", file=sys.stderr)
        return 130
    except SystemExit as left:
        if isinstance(left.code, int) and left.code > 128:  # a signal
            print(f"scoregen: ended by a signal{_resumable(given)}", file=sys.stderr)
        raise
    return 0


def _resumable(given: Sequence[str]) -> str:
    """What becomes of the work done: two commands keep theirs."""
    if given and given[0] in ("train", "compare"):
        return "; the same command goes on from here"
    return "; nothing was kept"
