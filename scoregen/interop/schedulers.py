"""The sampler that a diffusers scheduler is: its solver, its levels, its labels, its edits."""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..grids import Times
from ..models import Prediction, ScoreModel, ScoreNetwork
from ..noise import Noise
from ..processes import SDE, Level, RectifiedSDE
from ..sampling import Sampler, Solver
from ..solvers import (
    DDIM,
    EULER,
    Ancestral,
    DPMSolver,
    DPMSolver3MAsPublished,
    DPMSolverPP,
    ExponentialAB,
    KarrasHeun,
    ProbabilityFlow,
    SDEDPMSolverPP,
    UniPC,
)

__all__ = ["KnownLabels", "LastNoise", "Printed", "Strides"]

CHAINS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
    "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
CLIPPING = ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler")
EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")

# Every setting of those classes; one that stands in none of them is refused.
KEYS = frozenset((
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "prediction_type", "variance_type", "clip_sample", "clip_sample_range", "thresholding",
    "dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "steps_offset",
    "rescale_betas_zero_snr", "set_alpha_to_one", "skip_prk_steps", "interpolation_type",
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas",
    "use_flow_sigmas", "flow_shift", "sigma_min", "sigma_max", "sigma_data", "sigma_schedule",
    "rho", "timestep_type", "final_sigmas_type", "solver_order", "algorithm_type", "solver_type",
    "lower_order_final", "euler_at_final", "lambda_min_clipped", "use_dynamic_shifting",
    "time_shift_type", "predict_x0", "disable_corrector", "solver_p", "shift_terminal", "shift",
    "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "invert_sigmas",
    "stochastic_sampling",
))  # fmt: skip


@dataclass(frozen=True)
class KnownLabels:
    """A clock that is a list: the label that a scheduler gives at each of its own times.

    Args:
        times: falling.
        labels: one for each time.
        whole: whether the labels are whole numbers.

    >>> clock = KnownLabels((0.9, 0.4), (899.0, 399.0), whole=True)
    >>> clock(None, Level(0.4, 0.9, 0.4, 0.8), torch.zeros(2, 3))
    tensor([399, 399])
    """

    times: tuple[float, ...]
    labels: tuple[float, ...]
    whole: bool

    def __call__(self, sde: SDE, t: Level, x: Tensor) -> Tensor:
        if isinstance(t.t, Tensor):
            raise ValueError("a scheduler's own labels belong to its grid: one time for the batch")
        place = bisect_left(self.times, -t.t, key=lambda time: -time)
        near = [i for i in (place - 1, place) if 0 <= i < len(self.times)]
        best = min(near, key=lambda i: abs(self.times[i] - t.t))
        if abs(self.times[best] - t.t) > 1e-9 * max(1.0, self.times[0]):
            raise ValueError(
                f"t = {t.t:.9g} is not on the scheduler's grid; the nearest time is "
                f"{self.times[best]:.9g}. Sample the imported model itself on other grids"
            )
        label = torch.full((len(x),), self.labels[best], dtype=x.dtype, device=x.device)
        return label.round().long() if self.whole else label


@dataclass(frozen=True)
class Strides(Solver):
    """Moves of a fixed length, whose end is then taken for the next time of the grid.

    diffusers' DDIM goes from t to t - 1/n whatever time comes next; with "linspace", and with
    "trailing" where n does not divide the number of knots, the two differ.

    Args:
        solver: what makes the moves.
        stride: their length in time.
        floor: the last of their ends; a state there is taken for data where it is above 0.

    >>> Strides(DDIM(), 0.1).nfe
    1
    """

    solver: Solver
    stride: float
    floor: float = 0.0

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        end = max(t.t - self.stride, self.floor)
        aim = model.sde.level(end) if end > model.sde.t_min * (1 - 1e-9) else s
        return self.solver.step(model, x, t, aim, state, noise)


@dataclass(frozen=True)
class LastNoise(Solver):
    """`Ancestral`, with noise of the large or learned variance on the last move, too.

    diffusers' DDPM leaves the noise out only where the last timestep is 0; behind an offset or
    "trailing" the sample that it returns is x0 with noise.

    Args:
        variance: as of `Ancestral`.

    >>> LastNoise("large").nfe
    1
    """

    variance: Literal["large", "learned"]

    def step(
        self, model: ScoreModel, x: Tensor, t: Level, s: Level, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        if s.sigma > 0:
            return Ancestral(self.variance).step(model, x, t, s, state, noise)
        p = model(x, t)
        if self.variance == "large":
            return p.x0.add(noise(x, t, s), alpha=t.sigma), None
        if p.spread is None:
            raise ValueError('LastNoise("learned") needs a model with a learned variance')
        low, high = (
            math.log(1e-20),
            2 * math.log(t.sigma),
        )  # 1e-20 is diffusers' floor of beta-tilde
        return p.x0 + ((low + (high - low) * p.spread) / 2).exp() * noise(x, t, s), None


class _Edited(ScoreModel):
    """x0 edited; eps follows, or stays as it was predicted, which is what DDIM there combines."""

    def __init__(self, model: ScoreModel, edit: Callable[[Tensor], Tensor], eps_follows: bool):
        super().__init__()
        self.model, self.sde, self.edit, self.eps_follows = model, model.sde, edit, eps_follows

    def check_condition(self, **condition: Any) -> None:
        self.model.check_condition(**condition)

    def predict(self, x: Tensor, t: Level, **condition: Any) -> Prediction:
        p = self.model.predict(x, t, **condition)
        x0 = self.edit(p.x0)
        if self.eps_follows:
            return p.with_x0(x0)
        return Prediction(self.sde, t, x, x0=x0, eps=p.eps, spread=p.spread)


@dataclass(frozen=True)
class _Clip:
    span: float

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.span, self.span)


@dataclass(frozen=True)
class _Threshold:
    """Dynamic thresholding with a greatest threshold, as diffusers has it."""

    quantile: float
    most: float

    def __call__(self, x0: Tensor) -> Tensor:
        size = x0.reshape(len(x0), -1).abs()
        size = size.to(torch.promote_types(x0.dtype, torch.float32))
        limit = torch.quantile(size, self.quantile, dim=1).clamp(1.0, self.most)
        limit = limit.to(x0.dtype).reshape(-1, *(1,) * (x0.dim() - 1))
        return torch.maximum(torch.minimum(x0, limit), -limit) / limit


@dataclass(frozen=True)
class Printed:
    """A scheduler's own numbers: (model, steps) -> (model, sampler).

    Args:
        scheduler: of diffusers, or with its interface.

    >>> Printed(None).scheduler is None
    True
    """

    scheduler: Any

    def __call__(self, model: ScoreModel, steps: int) -> tuple[ScoreModel, Sampler]:
        if not isinstance(model, ScoreNetwork):
            raise TypeError(f"need the imported model itself, got {type(model).__name__}")
        made = copy.deepcopy(self.scheduler)
        config, kind = dict(made.config), type(made).__name__
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                "its shift depends on the size of the picture: build the scheduler with "
                "use_dynamic_shifting=False and shift=exp(mu)"
            )
        made.set_timesteps(steps)
        if kind in ("DDIMScheduler", "DDPMScheduler"):
            times, labels, solver = _by_index(made, config, kind, model.sde)
        else:
            times, labels, solver = _by_sigma(made, config, kind, model.sde)
        whole = not made.timesteps.is_floating_point()
        clock = KnownLabels(times[: len(labels)], labels, whole)
        plain = ScoreNetwork(model.net, model.sde, model.parameterization, clock)
        return _edited(plain, config, kind), Sampler(solver, Times(*times))


def _edited(model: ScoreModel, config: dict[str, Any], kind: str) -> ScoreModel:
    """The model with its scheduler's clipping or thresholding around it."""
    edit: Callable[[Tensor], Tensor]
    if config.get("thresholding"):
        edit = _Threshold(config["dynamic_thresholding_ratio"], config["sample_max_value"])
    elif config.get("clip_sample") and kind in CLIPPING:
        edit = _Clip(float(config["clip_sample_range"]))
    else:
        return model
    return _Edited(model, edit, eps_follows=kind != "DDIMScheduler")


Plan = tuple[tuple[float, ...], tuple[float, ...], Solver]


def _by_index(made: Any, config: dict[str, Any], kind: str, sde: SDE) -> Plan:
    """DDIM and DDPM: whole timesteps, and a last one that the config decides."""
    index = [int(i) for i in made.timesteps]
    count = int(config["num_train_timesteps"])
    times = [(i + 1) / count for i in index]
    if kind == "DDPMScheduler":
        variance = config["variance_type"]
        plain: dict[str, Literal["small", "large", "learned"]] = {
            "fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large",
            "learned_range": "learned",
        }  # fmt: skip
        if variance not in plain:
            raise ValueError(f"variance_type {variance!r} has no counterpart here")
        form = plain[variance]
        # at timestep 0 it adds none, and the small variance there is 0
        loud = index[-1] > 0 and form != "small"
        solver: Solver = LastNoise(form) if loud and form != "small" else Ancestral(form)
        return (*times, 0.0), tuple(map(float, index)), solver
    stride = count // len(index)
    aims = [i - stride for i in index]
    first_kept = float(made.final_alpha_cumprod) != 1
    last = (aims[-1] + 1) / count if aims[-1] >= 0 else 1 / count if first_kept else 0.0
    ddim: Solver = DDIM()
    stays = last >= times[-1]  # from the first knot to itself, which moves only what is clipped
    if aims[:-1] != index[1:] or stays:
        ddim = Strides(ddim, stride / count, last)
    return (*times, 0.0 if stays else last), tuple(map(float, index)), ddim


def _by_sigma(made: Any, config: dict[str, Any], kind: str, sde: SDE) -> Plan:
    """Schedulers with a list of sigmas, one more than there are moves."""
    solver = _solver(config, kind, len(made.timesteps))
    sigmas, labels = made.sigmas.double(), made.timesteps.double()
    if kind == "HeunDiscreteScheduler":  # it lists every inner level twice
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
        labels = torch.cat([labels[:1], labels[1::2]])
    if len(sigmas) > 1 and float(sigmas[-1]) == float(sigmas[-2]):
        raise ValueError(
            "its last move has no length (final_sigmas_type='sigma_min' on this grid) and gives "
            "NaN or nothing; take final_sigmas_type='zero'"
        )
    if isinstance(sde, RectifiedSDE):
        times = sigmas
    else:
        times = torch.where(sigmas > 0, sde.time(-sigmas.log()), 0.0)
        for end in (sde.t_min, sde.t_max):  # its sigmas are of float32, or rounded once more
            times[(times - end).abs() <= 1e-6 * end] = end
    return tuple(times.tolist()), tuple(labels.tolist()), solver


def _solver(config: dict[str, Any], kind: str, moves: int) -> Solver:
    """The solver of a scheduler with sigmas, where there is one with its numbers."""
    ends = config.get("final_sigmas_type", "zero")
    order = int(config.get("solver_order", 2))
    if kind in ("EulerDiscreteScheduler", "EDMEulerScheduler"):
        return DDIM()
    if kind == "EulerAncestralDiscreteScheduler":
        return Ancestral("small")
    if kind == "HeunDiscreteScheduler":
        return KarrasHeun()
    if kind == "FlowMatchEulerDiscreteScheduler" and not config["stochastic_sampling"]:
        return ProbabilityFlow(EULER)
    if kind in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"):
        algorithm, rule = config["algorithm_type"], config["solver_type"]
        lowered = config["euler_at_final"] or (config["lower_order_final"] and moves < 15)
        if order > 1 and lowered and (ends != "zero" or order == 3):
            raise ValueError(
                f"{kind} lowers the order of its last moves here; with lower_order_final=False, or "
                "15 steps and more, its numbers can be had"
            )
        known: dict[tuple[str, int, str], Solver] = {
            ("dpmsolver++", 2, "midpoint"): DPMSolverPP(2),
            ("dpmsolver++", 2, "heun"): ExponentialAB(2, "x0"),
            ("dpmsolver++", 3, "midpoint"): DPMSolver3MAsPublished("x0"),
            ("dpmsolver++", 3, "heun"): DPMSolver3MAsPublished("x0"),
            ("dpmsolver", 2, "midpoint"): DPMSolver(2),
            ("sde-dpmsolver++", 1, "midpoint"): SDEDPMSolverPP(1),
            ("sde-dpmsolver++", 1, "heun"): SDEDPMSolverPP(1),
            ("sde-dpmsolver++", 2, "midpoint"): SDEDPMSolverPP(2),
        }
        found = known.get((algorithm, order, rule))
        if algorithm in ("dpmsolver", "dpmsolver++") and order == 1:
            found = DDIM()
        if found is not None:
            return found
        raise ValueError(f"{algorithm} of order {order} with {rule} has no counterpart here")
    if kind == "UniPCMultistepScheduler" and config["predict_x0"] and not config["solver_p"]:
        if config["disable_corrector"]:
            raise ValueError("UniPC with disable_corrector has no counterpart here")
        if order < 3 and (ends == "zero" or not config["lower_order_final"]):
            if config["solver_type"] == "bh1" and ends == "zero":
                raise ValueError("bh1 to sigma = 0 gives NaN there; UniPC(p, 'x0', 'bh1') here")
            return UniPC(order, "x0", config["solver_type"])
        raise ValueError("UniPC lowers the order of its last moves here; take solver_order <= 2")
    raise ValueError(
        f"{kind} with these settings has no counterpart here with its numbers to the last move; "
        "sample the imported model with a solver of your choice"
    )
