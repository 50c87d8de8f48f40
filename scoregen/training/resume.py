"""The state of a training on disk: one file, written whole, read without running anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .._files import CheckpointError, digest, write
from .._identity import modules_within, uncompiled_name
from ..models import ScoreModel
from .ema import EMA
from .sharding import divide_like, whole

__all__ = ["Run"]

Moments = dict[int, dict[str, Tensor]]

_FORMAT = "3"
_KIND = "scoregen resume file"


class Run(NamedTuple):
    """What a training changes: weights, their averages, the objective's own tensors, counters.

    `done` holds three counters: `step`, the updates made or skipped, `skipped`, and `failed`, those
    skipped in a row. `start` holds the hash of each of the objective's tensors as first given.

    >>> model = torch.nn.Linear(1, 1)
    >>> run = Run(model, EMA(model), [], None, {"step": 0}, {})
    >>> run.done["step"]
    0
    """

    model: ScoreModel
    ema: EMA
    posthoc: Sequence[EMA]
    objective: Any
    done: dict[str, int]
    start: dict[str, str]

    def _held(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of modules within the objective: persistent chains, histories, teachers."""
        own = {id(t) for t in (*self.model.parameters(), *self.model.buffers())}
        for path, module in modules_within(self.objective).items():
            for name, tensor in module.state_dict(keep_vars=True).items():
                if id(tensor) not in own:
                    yield f"{path}.{name}", tensor

    def remember_start(self) -> None:
        """Note what the objective's tensors are before the first step."""
        self.start.update((name, digest([("", tensor)])) for name, tensor in self._held())

    def _averages(self) -> dict[str, EMA]:
        return {"ema": self.ema, **{f"posthoc{i}": e for i, e in enumerate(self.posthoc)}}

    def collect(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Everything on the host, by its name in the file.

        Where weights are divided among processes, each of them must call this.

        Args:
            optimizer: its moments belong to the state too.
        """
        groups = {
            "model": self.model.state_dict(),
            **{name: average.state_dict() for name, average in self._averages().items()},
            "objective": dict(self._held()),
            **{f"adam.{i}": s for i, s in optimizer.state_dict()["state"].items()},
        }
        # cloned, because tied weights share memory, which the format refuses; a compiled network
        # names its weights through `_orig_mod`, and resumes as a plain one
        return {
            f"{group}/{uncompiled_name(name)}": whole(tensor.detach()).cpu().clone()
            for group, content in groups.items()
            for name, tensor in content.items()
        }

    def write(self, path: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write the file, or leave the earlier one as it was.

        Args:
            path: where to.
            settings: what a continuation must share.
            tensors: what `collect` gave.

        Raises:
            CheckpointError: if it cannot be written.
        """
        head = json.dumps(
            {"done": self.done, "start": self.start, "settings": settings}, sort_keys=True
        )
        metadata = {
            "kind": _KIND,
            "format": _FORMAT,
            "head": head,
            "sha256": digest(tensors.items(), head=head),
        }
        write(path, safetensors.torch.save(tensors, metadata))

    def read(self, path: Path, settings: dict[str, Any]) -> Moments:
        """Continue from a file, whose settings must be the same; the model is still whole.

        Args:
            path: a file that `write` wrote.
            settings: those of this training.

        Returns:
            The moments of the optimizer, for `restore_moments`.

        Raises:
            CheckpointError: if it is damaged, foreign, or of another training.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is truncated or no resume file: {error}; delete it to start anew"
            ) from error
        if metadata.get("kind") != _KIND or metadata.get("format") != _FORMAT:
            raise CheckpointError(
                f"{path} is not a resume file of this version; choose another folder, or delete it"
            )
        if digest(tensors.items(), head=metadata["head"]) != metadata["sha256"]:
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 differs; delete it to start anew"
            )
        head = json.loads(metadata["head"])
        _compare(path, head["settings"], settings)
        moments = self._restore(path, tensors, head["start"])
        self.done.update(head["done"])
        return moments

    def _restore(self, path: Path, tensors: dict[str, Tensor], start: dict[str, str]) -> Moments:
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, key = name.partition("/")
            groups.setdefault(group, {})[key] = tensor
        self._restore_objective(path, groups.pop("objective", {}), start)
        modules: dict[str, torch.nn.Module] = {"model": self.model, **self._averages()}
        for group, module in modules.items():
            saved = groups.pop(group)
            names = module.state_dict()
            module.load_state_dict({k: saved[uncompiled_name(k)] for k in names})
        return {int(name.removeprefix("adam.")): content for name, content in groups.items()}

    def _restore_objective(
        self, path: Path, saved: dict[str, Tensor], start: dict[str, str]
    ) -> None:
        """What training changed comes from the file; what it left alone must be the same."""
        held = dict(self._held())
        other = sorted(set(held) ^ set(saved))
        for name in sorted(set(held) & set(saved)):
            kept = digest([("", saved[name])]) == start[name]
            if held[name].shape != saved[name].shape or (
                kept and digest([("", held[name])]) != start[name]
            ):
                other.append(name)
        if other:
            raise CheckpointError(
                f"{path} belongs to a training with another objective, which differs in "
                f"{', '.join(other[:5])}; use the same, or resume=False, or another folder"
            )
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(saved[name])
        self.start.clear()
        self.start.update(start)


def restore_moments(optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    """Give an optimizer the moments that `Run.read` returned, divided as its weights are.

    Args:
        optimizer: of the same weights.
        moments: of each weight, whole.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        i: {
            name: divide_like(value, weights[i]) if value.shape == weights[i].shape else value
            for name, value in content.items()
        }
        for i, content in moments.items()
    }
    layout = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": layout})


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    changed = [f"{name}: {old!r} -> {new!r}" for name, old, new in _differences(before, now)]
    if changed:
        raise CheckpointError(
            f"{path} belongs to a training with other settings ({'; '.join(changed[:5])}); use "
            "the same, or resume=False, or another folder"
        )


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of settings differ, by path."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(set(before) | set(now)):
            inner = ".".join(part for part in (path, key) if part)
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield path, before, now
