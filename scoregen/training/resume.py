"""The state of a training on disk: one file, written whole, read without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .._files import CheckpointError, digest, write
from ..models import ScoreModel
from .ema import EMA

__all__ = ["Run"]

_FORMAT = "1"
_KIND = "scoregen resume file"


class Run(NamedTuple):
    """What a training changes: weights, their average, the optimizer, and two counters in `done`.

    `done` is a dict with `step`, the updates made or skipped, and `skipped`.

    >>> model = torch.nn.Linear(1, 1)
    >>> run = Run(model, EMA(model), torch.optim.AdamW(model.parameters()), {"step": 0})
    >>> run.done["step"]
    0
    """

    model: ScoreModel
    ema: EMA
    optimizer: torch.optim.Optimizer
    done: dict[str, int]

    def _tensors(self) -> dict[str, Tensor]:
        groups = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            **{f"adam.{i}": s for i, s in self.optimizer.state_dict()["state"].items()},
        }
        # cloned, because tied weights share memory, which the format refuses
        return {
            f"{group}/{name}": tensor.detach().cpu().clone()
            for group, content in groups.items()
            for name, tensor in content.items()
        }

    def write(self, path: Path, settings: dict[str, Any]) -> None:
        """Write the file, or leave the earlier one as it was.

        Raises:
            CheckpointError: if it cannot be written.
        """
        tensors = self._tensors()
        head = json.dumps({"done": self.done, "settings": settings}, sort_keys=True)
        metadata = {
            "kind": _KIND,
            "format": _FORMAT,
            "head": head,
            "sha256": digest(tensors.items(), head=head),
        }
        write(path, safetensors.torch.save(tensors, metadata))

    def read(self, path: Path, settings: dict[str, Any]) -> None:
        """Continue from a file, whose settings must be the same.

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
        self._restore(tensors)
        self.done.update(head["done"])

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, key = name.partition("/")
            groups.setdefault(group, {})[key] = tensor
        self.model.load_state_dict(groups.pop("model"))
        self.ema.load_state_dict(groups.pop("ema"))
        state = {int(name.removeprefix("adam.")): content for name, content in groups.items()}
        layout = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": layout})


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    changed = [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(set(before) | set(now))
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{path} belongs to a training with other settings ({'; '.join(changed)}); use the "
            "same, or resume=False, or another folder"
        )
