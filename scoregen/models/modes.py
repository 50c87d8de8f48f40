"""Evaluation mode for the time of a run, from any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["evaluating"]

_LOCK = threading.Lock()
# module -> (blocks it is in, its own mode before the first of them)
_HELD: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside the block; every module's own mode comes back after.

    Blocks may nest and overlap, in one thread or several: a module's mode comes back when the last
    block that holds it ends.

    >>> import torch
    >>> net = torch.nn.Dropout()
    >>> with evaluating(net):
    ...     net.training
    False
    >>> net.training
    True
    """
    modules = list(model.modules())
    with _LOCK:
        for module in modules:
            blocks, before = _HELD.get(module, (0, module.training))
            _HELD[module] = blocks + 1, before
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            for module in modules:
                blocks, before = _HELD.pop(module)
                if blocks > 1:
                    _HELD[module] = blocks - 1, before
                else:
                    module.training = before
