"""Ctrl-C, SIGTERM and SIGHUP during a training: the update is finished, the state saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """Handlers that save before the process ends; the earlier ones come back afterwards.

    A signal that arrives inside `unbroken` waits for its end, since half an update could not be
    resumed from. Then `save` is called, and the signal does what it would have done: Ctrl-C raises
    KeyboardInterrupt, SIGTERM (preemption, `kill`) and SIGHUP (a closed terminal) raise SystemExit
    with 128 plus their number, unless the program handles them itself. Ignored signals stay
    ignored. Only the main thread receives signals: elsewhere nothing is installed.

    Args:
        save: writes what was not yet written.

    >>> with Signals(lambda: None) as signals, signals.unbroken():
    ...     pass
    """

    def __init__(self, save: Callable[[], None]):
        self.save = save
        self.before: dict[int, Any] = {}
        self.busy = False
        self.pending: list[int] = []

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # there is no SIGHUP on Windows
                if number is None:
                    continue
                before = signal.getsignal(number)
                if before is not None and before != signal.SIG_IGN:
                    self.before[number] = before
                    signal.signal(number, self._arrive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, before in self.before.items():
                if signal.getsignal(number) == self._arrive:
                    signal.signal(number, before)

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Let signals wait until the block is whole."""
        outer, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = outer
        if not self.busy and self.pending:
            self._act(self.pending.pop(), None)

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        if self.busy:
            self.pending.append(number)
        else:
            self._act(number, frame)

    def _act(self, number: int, frame: FrameType | None) -> None:
        self.pending.clear()
        self.save()
        before = self.before[number]
        if callable(before):
            before(number, frame)
        else:
            raise SystemExit(128 + number)
