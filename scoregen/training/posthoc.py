"""Averages of the weights whose length is chosen after training (Karras et al. 2024, 2312.02696).

Two averages with power-function profiles are kept during training and stored from time to time. Any
other length is a combination of what was stored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .._checks import check_count, check_device, check_entries, check_number, check_path
from .._files import CheckpointError, check_finite, digest, probe, write
from .._identity import uncompiled_name
from ..models import ScoreModel
from .card import core
from .checkpoint import load
from .ema import EMA
from .sharding import whole

__all__ = ["PostHoc", "PowerEMA", "reconstruct"]

FOLDER = "posthoc"
_KIND = "scoregen snapshot of averages"
# that of the uniform average, gamma = 0; a longer one would weigh the first weights most
LONGEST = math.sqrt(1 / 12)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile of a relative length, the largest root of equation 126.

        sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    Args:
        sigma_rel: standard deviation of the profile as a share of the training so far, in
            (0, 12^(-1/2)].

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.10), 2)
    (16.97, 6.94)
    """
    t = sigma_rel**-2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max()))


class PowerEMA(EMA):
    """The average of all weights so far by a power of their step: its length grows with training.

        e_t = beta_t e_{t-1} + (1 - beta_t) w_t,   beta_t = (1 - 1/t)^(gamma + 1)

    which gives w_s the weight (s^(gamma+1) - (s-1)^(gamma+1)) / t^(gamma+1), the integral of the
    profile p(s) ~ s^gamma over the step. (Karras et al. 2024, 2312.02696, section 3.1.)

    Args:
        model: what to average; it is copied.
        sigma_rel: standard deviation of the profile as a share of the training so far, in
            (0, 12^(-1/2)], whose end is the plain mean of all weights.

    >>> model = nn.Linear(1, 1)
    >>> average = PowerEMA(model, 12**-0.5)
    >>> for value in (1.0, 2.0, 6.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     average.update_parameters(model)
    >>> round(float(average.module.weight), 4)
    3.0
    """

    def __init__(self, model: nn.Module, sigma_rel: float = 0.10):
        super().__init__(model)
        self.sigma_rel = _length("sigma_rel", sigma_rel)
        self.gamma = gamma_of(self.sigma_rel)

    def decay_of(self, count: int) -> float:
        """beta_t of the update t = `count` + 1."""
        return float((1 - 1 / (count + 1)) ** (self.gamma + 1))


@dataclass(frozen=True)
class PostHoc:
    """Which averages are kept during training, and how often they are stored.

    Args:
        every: steps between two snapshots; the last step has one too. Some dozens to a hundred
            snapshots in all serve, each as large as the model for every length.
        sigma_rel: the two lengths kept, or more, as shares of the training so far.

    Raises:
        ValueError, TypeError: for a number outside its range.

    >>> PostHoc(every=100).sigma_rel
    (0.05, 0.1)
    """

    every: int
    sigma_rel: tuple[float, ...] = (0.05, 0.10)

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", check_count("every", self.every))
        object.__setattr__(self, "sigma_rel", _lengths(self.sigma_rel))

    def averages(self, model: nn.Module) -> list[PowerEMA]:
        """The averages of a model, before the first step."""
        return [PowerEMA(model, sigma_rel) for sigma_rel in self.sigma_rel]

    def due(self, step: int, steps: int) -> bool:
        """Whether a snapshot is taken after this step of so many."""
        return step % self.every == 0 or step == steps


def _length(name: str, value: object) -> float:
    return check_number(name, value, 0.0, LONGEST, open_low=True)


def _lengths(values: Sequence[float]) -> tuple[float, ...]:
    listed = check_entries("sigma_rel", values, "lengths")
    lengths = tuple(_length(f"sigma_rel[{i}]", value) for i, value in enumerate(listed))
    if not lengths or len(set(lengths)) != len(lengths):
        raise ValueError(f"sigma_rel must hold one length at least, each once, got {values}")
    return lengths


def collect(averages: Sequence[PowerEMA]) -> dict[str, Tensor]:
    """The averages on the host, by their number and the names a checkpoint gives the weights.

    Where they are divided among processes, each of them must call this.
    """
    return {
        f"{i}/{uncompiled_name(name)}": whole(tensor).cpu().clone()
        for i, average in enumerate(averages)
        for name, tensor in _weights(average).items()
    }


def store(
    folder: Path, step: int, sigma_rel: Sequence[float], tensors: Mapping[str, Tensor]
) -> None:
    """Write the averages after a step as one file of `folder`/posthoc.

    Args:
        folder: of the training.
        step: t.
        sigma_rel: the lengths of the averages.
        tensors: what `collect` made of them.
    """
    check_finite(dict(tensors), f"the averages of step {step}")
    head = json.dumps({"step": step, "sigma_rel": list(sigma_rel)})
    metadata = {"kind": _KIND, "head": head, "sha256": digest(tensors.items(), head=head)}
    path = probe(folder / FOLDER) / f"{step:09d}.safetensors"
    write(path, safetensors.torch.save(dict(tensors), metadata))


def _weights(average: PowerEMA) -> dict[str, Tensor]:
    """By the names that a checkpoint gives them."""
    model = average.module
    if not isinstance(model, ScoreModel):
        raise TypeError(f"the average must be of a score model, got {type(model).__name__}")
    names = {id(t): name for name, t in core(model).state_dict(keep_vars=True).items()}
    own = zip(model.state_dict(keep_vars=True).values(), average.state().values(), strict=True)
    return {names[id(t)]: value for t, value in own if id(t) in names}


class Profile(NamedTuple):
    """p(s) = (gamma + 1) s^gamma / t^(gamma + 1) for s <= t, and 0 after it.

    >>> Profile(2.0, 0.0).dot(Profile(4.0, 0.0))  # 1/2 on [0, 2] with 1/4 on [0, 4]
    0.25
    """

    t: float
    gamma: float

    def dot(self, other: Profile) -> float:
        """The integral of the product of two profiles, in closed form."""
        (a, g), (b, h) = self, other
        t = min(a, b)
        # powers of ratios in [0, 1]: t^(g + h + 1) itself would overflow
        return (g + 1) * (h + 1) / (g + h + 1) * (t / a) ** g * (t / b) ** h * t / (a * b)


def combination(stored: Sequence[Profile], wanted: Profile) -> list[float]:
    """The shares whose sum of stored profiles is nearest to the wanted one, in least squares.

        A x = b,   A_ij = <p_i, p_j>,   b_i = <p_i, p>     (2312.02696, algorithm 3)

    Args:
        stored: profiles at hand.
        wanted: the profile to be made.

    >>> kept = [Profile(50.0, 7.0), Profile(100.0, 7.0)]
    >>> [round(share, 6) + 0.0 for share in combination(kept, kept[1])]
    [0.0, 1.0]
    """
    scale = np.array([math.sqrt(p.dot(p)) for p in stored])
    a = np.array([[p.dot(q) for q in stored] for p in stored]) / np.outer(scale, scale)
    b = np.array([p.dot(wanted) for p in stored]) / scale
    shares = np.linalg.lstsq(a, b, rcond=None)[0] / scale
    return [float(share) for share in shares]


def reconstruct(
    folder: str | os.PathLike[str],
    sigma_rel: float,
    *,
    step: int | None = None,
    net: nn.Module | None = None,
    model: ScoreModel | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel:
    """The model with the average of any length, from the snapshots of a training.

    The error is least between and near the stored lengths, 0.03 to 0.20 for those of `PostHoc`,
    and grows below, where snapshots are further apart than the average is long.

    Args:
        folder: `out` of a training by `fit(..., posthoc=...)`.
        sigma_rel: the length wanted, in (0, 12^(-1/2)].
        step: at the end of which the average is wanted; the last one stored unless given.
        net: as for `load`, where the network is not one of scoregen's.
        model: as for `load`, where more than the network is your own.
        device: where the model should live.

    Returns:
        The model of `folder`/model with these weights, in evaluation mode; buffers are those of the
        last snapshot used.

    Raises:
        CheckpointError: if there is no snapshot, or one is damaged or does not fit.

    >>> reconstruct("nowhere", 0.15)
    Traceback (most recent call last):
        ...
    scoregen._files.CheckpointError: there are no snapshots in nowhere/posthoc; train with \
fit(..., posthoc=PostHoc(every=...), out=...)
    """
    folder, sigma_rel = check_path("folder", folder), _length("sigma_rel", sigma_rel)
    place = check_device("device", device)
    held = {path: _head(path) for path in sorted((folder / FOLDER).glob("[0-9]*.safetensors"))}
    if not held:
        raise CheckpointError(
            f"there are no snapshots in {folder / FOLDER}; train with "
            "fit(..., posthoc=PostHoc(every=...), out=...)"
        )
    steps = [head.step for head in held.values()]
    last = max(steps) if step is None else check_count("step", step)
    if last not in steps:
        raise CheckpointError(
            f"{folder / FOLDER} has no snapshot of step {last}; there are {sorted(steps)}"
        )
    used = {path: head for path, head in held.items() if head.step <= last}
    profiles = [
        Profile(head.step, gamma_of(length)) for head in used.values() for length in head.sigma_rel
    ]
    shares = iter(combination(profiles, Profile(last, gamma_of(sigma_rel))))
    made = load(folder / "model", net=net, model=model, device=place)
    state = core(made).state_dict()
    names = {uncompiled_name(name): name for name in state}
    averaged = {name for name, p in core(made).named_parameters() if p.is_floating_point()}
    total = {
        plain: torch.zeros_like(state[name], dtype=torch.float64, device="cpu")
        for plain, name in names.items()
        if name in averaged
    }
    final: dict[str, Tensor] = {}
    for path, head in used.items():
        tensors = _tensors(path, set(names), len(head.sigma_rel))
        for group in tensors:
            share = next(shares)
            for plain, sum_ in total.items():
                sum_.add_(group[plain].double(), alpha=share)
        final = tensors[0]
    new = {names[plain]: total.get(plain, final[plain]) for plain in names}
    core(made).load_state_dict({name: v.to(state[name].dtype) for name, v in new.items()})
    return made


class _Head(NamedTuple):
    """What a snapshot states of itself."""

    step: int
    sigma_rel: tuple[float, ...]


def _head(path: Path) -> _Head:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no snapshot: {error}") from error
    if metadata.get("kind") != _KIND:
        raise CheckpointError(f"{path} is not a snapshot of averages; move it away")
    head = json.loads(metadata["head"])
    return _Head(head["step"], tuple(head["sigma_rel"]))


def _tensors(path: Path, names: set[str], count: int) -> list[dict[str, Tensor]]:
    """The averages in one file, in the order of their lengths."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if digest(tensors.items(), head=metadata["head"]) != metadata["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 differs; delete it to go without")
    groups: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        group, _, plain = name.partition("/")
        groups[int(group)][plain] = tensor
    for group in groups:
        if set(group) != names:
            raise CheckpointError(
                f"{path} holds the averages of another network than the checkpoint: "
                f"{', '.join(sorted(set(group) ^ names)[:5])}"
            )
    return groups
