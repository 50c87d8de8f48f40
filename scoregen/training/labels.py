"""The labels of a training: how many classes a model declares, and whether it takes them."""

from __future__ import annotations

from torch import nn

__all__ = ["label_classes"]


def label_classes(model: nn.Module) -> int:
    """K, where some network inside the model declares classes 0 .. K - 1, with K the null class.

    A network declares them by an attribute `classes`; 0 means that it takes no labels.

    Args:
        model: a score model or energy, whatever it is made of.

    Raises:
        ValueError: if its networks declare different numbers.

    >>> from scoregen import MLP, VPSDE, Eps, ScoreNetwork
    >>> label_classes(ScoreNetwork(MLP(classes=3), VPSDE(), Eps()))
    3
    """
    declared = {}
    for name, module in model.named_modules():
        classes = vars(module).get("classes", 0)
        if isinstance(classes, int) and classes:
            declared[name] = classes
    if len(set(declared.values())) > 1:
        raise ValueError(
            "the networks inside the model must declare one number of classes, so that one null "
            f"class serves all, got {', '.join(f'{k}: {v}' for k, v in declared.items())}"
        )
    return next(iter(declared.values()), 0)
