"""What identifies the predictions of a model."""

from __future__ import annotations

from torch import nn

from .._checks import check_kind
from .._identity import identity

__all__ = ["fingerprint"]


def fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits that change with whatever changes what a model predicts.

    Args:
        model: any module; weights, buffers, settings, bound conditions, code and closures count.

    Raises:
        TypeError: for what is no module.
        IdentityError: where something that decides the prediction cannot be read.

    >>> import torch
    >>> from scoregen import VPSDE, Gaussian
    >>> a, b = (Gaussian(VPSDE(), torch.zeros(2), v) for v in (1.0, 2.0))
    >>> len(fingerprint(a)), fingerprint(a) == fingerprint(b)
    (12, False)
    """
    check_kind("model", model, nn.Module, "ScoreNetwork(net, VPSDE(), V())")
    return identity(model)[:12]
