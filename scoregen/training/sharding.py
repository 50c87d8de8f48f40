"""Weights that are divided among processes (FSDP2): a copy divided alike, and whole again."""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["divide_like", "sharded", "whole"]


def sharded(tensor: Tensor) -> bool:
    """Whether a tensor is divided among processes.

    >>> import torch
    >>> sharded(torch.zeros(1))
    False
    """
    # without its module nothing can be one, and importing it takes seconds
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or put together from all processes, each of which must call this.

    >>> import torch
    >>> whole(torch.ones(2))
    tensor([1., 1.])
    """
    if not sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divide_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor divided as another one is; itself where that one is whole.

    >>> import torch
    >>> divide_like(torch.ones(2), torch.zeros(2))
    tensor([1., 1.])
    """
    if not sharded(pattern):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(pattern, DTensor) or isinstance(tensor, DTensor):
        return tensor
    # every process has the whole and keeps its part: nothing is sent
    return distribute_tensor(
        tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None
    )


def divide(copy: nn.Module, original: nn.Module) -> None:
    """Divide the parameters of a copy as those of the original are.

    Args:
        copy: of the original, whole.
        original: a module after `fully_shard`.
    """
    theirs = dict(original.named_parameters(remove_duplicate=False))
    if any(map(sharded, theirs.values())):
        _replace(copy, lambda name, mine: divide_like(mine, theirs[name]))


def gather(module: nn.Module) -> None:
    """Put the parameters of a module together; every process must call this."""
    if any(map(sharded, module.parameters())):
        _replace(module, lambda name, mine: whole(mine))


def _replace(module: nn.Module, change: Callable[[str, Tensor], Tensor]) -> None:
    """Put changed tensors in the place of all parameters; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for name, mine in list(module.named_parameters(remove_duplicate=False)):
        if id(mine) not in made:
            made[id(mine)] = nn.Parameter(change(name, mine.detach()), mine.requires_grad)
        path, _, last = name.rpartition(".")
        setattr(module.get_submodule(path), last, made[id(mine)])
