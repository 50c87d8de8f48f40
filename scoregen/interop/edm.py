"""Networks of EDM and EDM2, which return the denoised data itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._checks import check_count, check_number, check_range
from ..grids import Karras, Times
from ..models import X0, Conditions, RawTime, ScoreModel
from ..models.network import check_network
from ..processes import EDMSDE
from ..sampling import Sampler
from ..solvers import KarrasHeun
from .card import Adapter, Card, Imported
from .edm_files import edm_network
from .preconditioned import Preconditioned

__all__ = ["from_edm"]


class _Denoiser(Adapter):
    """D(x; sigma, class_labels), with labels as whole numbers or one-hot."""

    def __init__(self, net: Callable[..., Any], classes: int):
        super().__init__(net, ("label", "class_labels") if classes else ())
        self.classes = classes

    @property
    def conditions(self) -> Conditions | None:
        """A label, whose null is one past the last class."""
        return Conditions.labels(self.classes)

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        label, class_labels = condition.get("label"), condition.get("class_labels")
        if label is not None and class_labels is not None:
            raise TypeError("give label (whole numbers) or class_labels (one-hot), not both")
        if label is not None:
            # the null class, one past the last, is the row of zeros
            eye = torch.eye(self.classes + 1, self.classes, device=x.device, dtype=torch.float32)
            class_labels = eye[label.long()]
        return self.net(x, clock, class_labels) if self.classes else self.net(x, clock)


@dataclass(frozen=True)
class _Heun:
    """Algorithm 1 of the paper, on sigmas that the network rounds to its own."""

    rounded: Callable[[Tensor], Tensor] | None

    def __call__(self, model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
        grid = Karras(steps)
        if self.rounded is None:
            return model, Sampler(KarrasHeun(), grid)
        sigmas = self.rounded(grid(model.sde)[:-1]).double().tolist()
        # two that are rounded to one make a move of no length
        moves = [s for k, s in enumerate(sigmas) if k == 0 or s != sigmas[k - 1]]
        return model, Sampler(KarrasHeun(), Times(*moves, 0.0))


def from_edm(
    net: Callable[..., Any] | str | Path,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    classes: int | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> Imported:
    """A network D(x; sigma, class_labels) of EDM (Karras et al. 2022, 2206.00364) or EDM2.

    Such a network (`EDMPrecond` and its kin) returns the denoised data: its preconditioning is
    inside, and it is not to be put into `EDM(0.5)` once more. Conditions: `label`, whole numbers
    with `classes` for none, or `class_labels`, one-hot with zeros for none.

    Args:
        net: a pickle of EDM or EDM2, which is read inertly (`read_pickle`) and whose averaged
            weights fill `networks.NCSNpp`, `ADM` or `EDM2`; or the network itself, of which
            `sigma_min`, `sigma_max`, `label_dim`, `img_channels`, `img_resolution` and
            `round_sigma` are read where it has them.
        sigma_min: least noise level; at least the network's own, 0.002 unless given.
        sigma_max: greatest noise level; at most the network's own, 80 unless given.
        classes: number of classes, 0 for none; the network's own label_dim unless given.
        data_range: least and greatest value of the data, for the card.

    Raises:
        FileNotFoundError: for a file that is not there; nothing is downloaded.
        ValueError: for an empty range of noise levels, and for a file that holds no such network.
        TypeError: where neither the network nor the call states the number of classes.

    >>> def net(x, sigma):  # exact for N(0, 1)
    ...     return x / (1 + sigma.reshape(-1, 1) ** 2)
    >>> model = from_edm(net, classes=0)
    >>> model(torch.ones(1, 2), 1.0).x0
    tensor([[0.5000, 0.5000]])
    """
    check_range("data_range", data_range)
    least = 0.002 if sigma_min is None else check_number("sigma_min", sigma_min, 0.0, open_low=True)
    most = 80.0 if sigma_max is None else check_number("sigma_max", sigma_max, 0.0, open_low=True)
    if classes is not None:
        classes = check_count("classes", classes, 0)
    name = f"EDM, {type(net).__name__}"
    left: tuple[str, ...] = ()
    if isinstance(net, str | Path):
        net, kind, left = edm_network(net)
        name = f"EDM, {kind}"
    check_network(net)
    facts = {
        fact: getattr(net, fact)
        for fact in ("sigma_min", "sigma_max", "label_dim", "img_channels", "img_resolution")
        if hasattr(net, fact)
    }
    low = max(float(facts.get("sigma_min", 0.0)), least)
    high = min(float(facts.get("sigma_max", math.inf)), most)
    check_number("sigma_min", low, 0.0, open_low=True)
    check_number("sigma_max", high, low, open_low=True)
    if classes is None:
        if "label_dim" not in facts:
            raise TypeError(
                "this network has no label_dim: give classes=, the number of classes, 0 for none"
            )
        classes = int(facts["label_dim"])
    event = net.event if isinstance(net, Preconditioned) else None
    if "img_channels" in facts and "img_resolution" in facts:
        size = int(facts["img_resolution"])
        event = (int(facts["img_channels"]), size, size)
    rounds = getattr(net, "round_sigma", None)
    card = Card(
        name,
        data_range,
        event,
        (("label", f"{classes}"), ("class_labels", "zeros")) if classes else (),
        times=f"sigma in [{low:g}, {high:g}]",
        sampling="Heun's method without churn, Karras(steps)",
        dropped=("float32 inside the network, whatever the state's dtype", *left),
    )
    model = Imported(
        _Denoiser(net, classes), EDMSDE(low, high), X0(), RawTime(), card, _Heun(rounds)
    )
    return model.eval() if isinstance(net, Preconditioned) else model
