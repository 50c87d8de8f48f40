"""Distillation from stored trajectories of a teacher: deterministic targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._checks import (
    check_count,
    check_counts,
    check_flag,
    check_kind,
    check_number,
    check_state,
    shown,
)
from ..data import Data
from ..grids import SinhLam, Times
from ..models import ScoreModel, ScoreNetwork, check_model
from ..models.modes import evaluating
from ..noise import SampleNoise
from ..sampling import Sampler, Solver
from ..solvers import AngularAB, EulerStart
from .angles import angle
from .jumps import mapped
from .model import AngleSpan, FlowMap, check_direction, flow_map
from .objective import distance

__all__ = ["Trajectories", "from_score_network", "trajectories"]


def from_score_network(model: ScoreNetwork, *, inverts: bool = False) -> FlowMap:
    """A flow map with the weights of a score network: at the start its jumps are DDIM's.

    The network is built again with a second clock, whose last layer is zero, and without dropout.

    Args:
        model: a `ScoreNetwork` whose network is an `MLP` or a `UNet`.
        inverts: whether jumps towards more noise will be trained too.

    Raises:
        TypeError: for another network; give it a second clock yourself.

    >>> from scoregen import MLP, Times, V, VPSDE, DDIM
    >>> teacher = ScoreNetwork(MLP(event=(2,), hidden=16), VPSDE(), V())
    >>> x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    >>> want = Sampler(DDIM(), Times(0.9, 0.3)).run(teacher, x, noise=SampleNoise(0))
    >>> torch.allclose(from_score_network(teacher).jump(x, 0.9, 0.3), want, atol=1e-6)
    True
    """
    check_kind("model", model, ScoreNetwork, "ScoreNetwork(net, VPSDE(), V())")
    check_flag("inverts", inverts)
    net = model.net
    config = vars(net).get("config")
    if not isinstance(config, dict) or "second_clock" not in config:
        raise TypeError(
            f"{type(net).__name__} has no second clock to switch on: write a network "
            "net(x, clock, span=..., **condition) and use FlowMap(net, ...)"
        )
    changed = {**config, "second_clock": True}
    if "dropout" in changed:
        changed["dropout"] = 0.0
    with torch.random.fork_rng():
        twin = type(net)(**changed)
    # what is not copied is drawn from a stream of its own, so that the same model comes out
    draws = torch.Generator().manual_seed(0)
    inner = twin.condition.span.inner
    with torch.no_grad():
        inner.weight.normal_(std=inner.in_features**-0.5, generator=draws)
        inner.bias.zero_()
    missing, unexpected = twin.load_state_dict(net.state_dict(), strict=False)
    if unexpected or any(".span." not in key for key in missing):
        raise TypeError(f"the weights do not fit: missing {missing}, unexpected {unexpected}")
    place, _ = model.placement()
    return FlowMap(twin, model.sde, model.parameterization, model.clock, AngleSpan(inverts)).to(
        place
    )


@torch.no_grad()
def trajectories(
    teacher: ScoreModel,
    count: int,
    *,
    event: tuple[int, ...] | None = None,
    label: Tensor | None = None,
    moves: int = 12,
    solver: Solver | None = None,
    chunk: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> Data:
    """Trajectories of a teacher's probability flow, as the data of `Trajectories`.

    Every chunk has a grid of its own, the knots of `SinhLam` moved at random by up to half their
    distance, because a map trained on one grid learns its second clock at those knots alone.

    Args:
        teacher: any score model.
        count: number of trajectories.
        event: shape of one sample; the teacher's own unless given.
        label: classes of shape (count,), int64, for a teacher that takes them.
        moves: moves of each trajectory; its cost is one evaluation each.
        solver: a deterministic solver; `EulerStart(AngularAB(2))` unless given.
        chunk: trajectories at a time.
        seed: of the starts and the grids.
        progress: show a bar.

    Returns:
        Data of shape (count, moves + 1, 1 + d): for each knot its angle and x / rho, flat.

    >>> from scoregen import Gaussian, VPSDE
    >>> data = trajectories(Gaussian(VPSDE(), torch.zeros(2), 0.3), 8, moves=5, progress=False)
    >>> data.event
    (6, 3)
    """
    check_model(teacher, "teacher")
    check_count("count", count)
    check_count("moves", moves, 3)
    check_count("chunk", chunk)
    check_flag("progress", progress)
    known = teacher.event if event is None else event
    if known is None:
        raise ValueError("the teacher does not know the shape of a sample: give event=")
    event = check_counts("event", known)
    if teacher.event is not None and event != tuple(teacher.event):
        raise ValueError(f"event must be that of the teacher, {teacher.event}, got {event}")
    if label is not None:
        _check_label(label, count)
    solver = EulerStart(AngularAB(2)) if solver is None else solver
    check_kind("solver", solver, Solver, "EulerStart(AngularAB(2))")
    if solver.order is None:
        raise ValueError(f"solver must be noise-free, got {solver!r}; use EulerStart(AngularAB(2))")
    sde = teacher.sde
    draws = torch.Generator().manual_seed(check_count("seed", seed, 0))
    knots = sde.lam(SinhLam(moves, start=_finite_start(sde))(sde))[:-1]
    gaps = knots.diff()
    place, _ = teacher.placement()
    found = []
    with evaluating(teacher):
        for first in tqdm(range(0, count, chunk), desc="trajectories", disable=not progress):
            size = min(chunk, count - first)
            shift = torch.rand(len(gaps) - 1, generator=draws, dtype=torch.float64) - 0.5
            moved = knots.clone()
            moved[1:-1] += shift * torch.minimum(gaps[:-1], gaps[1:])
            sampler = Sampler(solver, Times(sde.t_max, *sde.time(moved[1:]).tolist(), 0.0))
            like = torch.empty((size, *event), device=place)
            start = sde.level(sde.t_max)
            x = sde.prior_std(sde.t_max) * SampleNoise(seed, first)(like, start, start)
            model = teacher
            if label is not None:
                model = teacher.given(label=label[first : first + size].to(place))
            rows = [
                torch.cat([torch.full((size, 1), angle(t)), _unit(x, t).reshape(size, -1).cpu()], 1)
                for _, t, x, _ in sampler.iterate(model, x, noise=SampleNoise(seed))
            ]
            found.append(torch.stack(rows, 1))
    return Data(torch.cat(found), label, name="trajectories")


def _check_label(label: object, count: int) -> None:
    """Refuse what is not one whole number for each trajectory."""
    if not isinstance(label, Tensor) or label.shape != (count,) or label.dtype != torch.int64:
        raise ValueError(
            f"label must be an int64 tensor with one class for each of {count} trajectories, got "
            f"{shown(label)}"
        )


def _finite_start(sde: Any) -> float:
    """The start of the interior knots: t_max, or a little below where no signal is left there."""
    return float(sde.t_max if math.isfinite(sde.level(sde.t_max).lam) else 0.998 * sde.t_max)


def _unit(x: Tensor, t: Any) -> Tensor:
    return x / math.hypot(t.alpha, t.sigma)


@dataclass(frozen=True)
class Trajectories:
    """The map between two points of a stored trajectory of a teacher.

        huber(W(w_i, theta_i, theta_j) - w_j) / max(sin(theta_i - theta_j), 0.02),    i < j

    (Luhman and Luhman 2021, 2101.02388, from the first point to the last alone.) The targets
    are deterministic, so the robust distance makes no bias; the fixed point is the teacher's
    solver. The diagonal is trained by the shortest jumps alone.

    Args:
        event: shape of one sample.
        top: share of jumps that start at the first point.
        zero: share of jumps that end at the last.
        c: constant of the pseudo-Huber distance; inf for the squared error.
        inverts: share of jumps that are turned round, towards noise, for a map with
            `AngleSpan(inverts=True)`; those that would start at the data start a knot before.

    >>> from scoregen import Gaussian, VPSDE
    >>> from scoregen.flowmaps import GaussianFlowMap
    >>> exact = GaussianFlowMap(VPSDE(), torch.zeros(2), 0.3)
    >>> data = trajectories(exact, 8, moves=40, progress=False)
    >>> loss = Trajectories((2,))(exact, data.x, generator=torch.Generator().manual_seed(0))
    >>> bool((loss < 1e-3).all())
    True
    """

    event: tuple[int, ...]
    top: float = 0.25
    zero: float = 0.5
    c: float = 0.1
    inverts: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", check_counts("event", self.event))
        for name in ("top", "zero", "inverts"):
            share = check_number(name, getattr(self, name), 0.0, 1.0)
            object.__setattr__(self, name, share)
        check_number("c", self.c, 0.0, open_low=True, infinite=True)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, generator: torch.Generator, **condition: Any
    ) -> Tensor:
        """One loss per trajectory, shape (batch,).

        Args:
            model: a flow map.
            x0: a batch of `trajectories`, shape (batch, moves + 1, 1 + d).
            generator: source of the pairs.
            **condition: passed on to the model.
        """
        check_state(x0, "x0")
        check_kind("generator", generator, torch.Generator, "torch.Generator().manual_seed(0)")
        flow_map(model)
        check_direction(model, self.inverts > 0)
        size = math.prod(self.event)
        if x0.dim() != 3 or x0.shape[2] != 1 + size:
            raise ValueError(
                f"x0 must be a batch of trajectories of events {self.event}, shape (batch, "
                f"moves + 1, {1 + size}), got {tuple(x0.shape)}: take data from trajectories()"
            )
        count, last = len(x0), x0.shape[1] - 1
        u = torch.rand(4, count, generator=generator, device=generator.device).to(x0.device)
        i = (u[0] * last).long().clamp(max=last - 1)
        i = torch.where(u[1] < self.top, torch.zeros_like(i), i)
        j = i + 1 + (u[2] * (last - i)).long()
        j = torch.where(u[3] < self.zero, torch.full_like(j, last), j.clamp(max=last))
        rows = torch.arange(count, device=x0.device)
        if self.inverts:
            # the rows are independent draws, so the first ones are as good as any
            turned = rows < round(self.inverts * count)
            # no network is evaluated at theta = 0; a pair of two last knots becomes an earlier one
            up = j.clamp(max=last - 1)
            i, j = torch.where(turned, up, i), torch.where(turned, i.clamp(max=last - 2), j)
        start, stop = x0[rows, i], x0[rows, j]
        w = start[:, 1:].reshape(count, *self.event)
        target = stop[:, 1:].reshape(count, *self.event)
        first, after = start[:, 0], stop[:, 0]
        error = mapped(model, w, first, after, **condition) - target
        return distance(error, self.c) / torch.sin(first - after).abs().clamp(min=0.02)
