"""What is looked at while a training runs: the loss on held-out data, and samples."""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_count, check_data, check_kind
from .._figures import figure, tile_images, written
from .._files import CheckpointError, probe, write
from ..data import Batch, Source, as_source
from ..data.order import check_seed
from ..models import ScoreModel
from ..models.base import check_model, evaluating
from ..models.conditions import rows as rows_of
from ..noise import SampleNoise
from ..objectives import DenoisingScoreMatching, Objective
from ..objectives.laws import Law
from ..sampling import Sampler
from .checkpoint import card
from .log import FILE, read

__all__ = ["Validation", "Watch", "validate"]


class Validation(NamedTuple):
    """The loss on held-out data, level by level.

    Args:
        t: the times of the levels, at equal shares of the law of t.
        losses: mean loss per coordinate at each.

    >>> Validation((0.25, 0.75), (3.0, 1.0)).loss
    2.0
    """

    t: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Their mean, which estimates the loss under the law of t."""
        return sum(self.losses) / len(self.losses)


def validate(
    model: ScoreModel,
    batch: Batch,
    objective: DenoisingScoreMatching | None = None,
    *,
    levels: int = 8,
    seed: int = 0,
    chunk: int = 256,
) -> Validation:
    """The denoising loss at fixed times and fixed noise, so that two models differ by themselves.

        loss_k = mean_i loss(x_i; t_k, eps_ik) / d,   t_k: the quantile (k + 1/2) / K of the law

    Args:
        model: any score model.
        batch: held-out samples, and what they are conditioned on.
        objective: its law and weight; `DenoisingScoreMatching()` unless given.
        levels: K.
        seed: of the noise eps_ik, which depends on (seed, k, i) alone.
        chunk: samples at once.

    Raises:
        TypeError: for a law of t without quantiles, or an argument of another kind.
        ValueError: for samples that are none or not finite, or a number outside its range.

    >>> from scoregen import VPSDE, Gaussian
    >>> exact = Gaussian(VPSDE(), torch.zeros(2), 1.0)
    >>> held_out = Batch(torch.zeros(4, 2), {})
    >>> validate(exact, held_out) == validate(exact, held_out)
    True
    """
    check_model(model)
    check_kind("batch", batch, Batch, "Batch(x, {})")
    check_kind("batch.condition", batch.condition, Mapping, '{"label": label}')
    if not len(check_data(batch.x, "batch.x")):
        raise ValueError("batch.x must hold at least one sample to have a loss, got none")
    objective = DenoisingScoreMatching() if objective is None else objective
    check_kind("objective", objective, DenoisingScoreMatching, "DenoisingScoreMatching()")
    law = _law(objective)
    levels, chunk = check_count("levels", levels), check_count("chunk", chunk)
    u = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    times = law.quantile(model.sde, u)
    level = model.sde.level(model.sde.t_max)
    noise, x = SampleNoise(seed), batch.x
    losses = []
    with torch.no_grad(), evaluating(model):
        for t in times:
            eps = noise(x, level, level)
            total = x.new_zeros(())
            for first in range(0, len(x), chunk):
                part = slice(first, min(first + chunk, len(x)))
                condition = rows_of(batch.condition, part, len(x))
                loss = objective.at(model, x[part], t.expand(len(x[part])), eps[part], **condition)
                total = total + loss.sum()
            losses.append(total)
    scale = len(x) * max(1, x[0].numel())
    measured = torch.stack(losses).tolist()
    return Validation(tuple(times.tolist()), tuple(value / scale for value in measured))


def _law(objective: DenoisingScoreMatching) -> Law:
    if not isinstance(objective.law, Law):
        raise TypeError(
            f"the levels are quantiles of the law of t, which {objective.law!r} does not have: "
            "give one of scoregen's laws, Watch(objective=DenoisingScoreMatching(UniformLaw()))"
        )
    return objective.law


@dataclass(frozen=True)
class Watch:
    """What `fit` looks at while it trains, and how often; it changes no bit of the training.

    In `out` appear `best`, the checkpoint of the averaged weights with the lowest held-out loss;
    `training.png`, the losses so far and the loss per level; `samples/` with one row of pictures
    for each look, and `samples.png` with all of them. The numbers are in `log.jsonl`.

    Args:
        every: steps between two looks; there is one after the last step too.
        data: held-out samples, `Data` or another `Source`; None for no loss.
        samples: how many of them are used, the first of the order of `seed`.
        levels: noise levels at which their loss is measured.
        objective: whose loss; that of the training, which then must be a
            `DenoisingScoreMatching`, unless given.
        sampler: draws the pictures; None for none.
        pictures: images in a row, of classes 0, 1, 2 .. in turn where there are classes.
        seed: of the noise of both, the same at every look.

    Raises:
        ValueError, TypeError: for a value outside its range, or nothing to look at.

    >>> from scoregen import Data
    >>> Watch(every=100, data=Data(torch.zeros(300, 2))).levels
    8
    """

    every: int
    data: Source | None = None
    samples: int = 256
    levels: int = 8
    objective: DenoisingScoreMatching | None = None
    sampler: Sampler | None = None
    pictures: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "samples", "levels", "pictures"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.objective is not None:
            example = "DenoisingScoreMatching()"
            check_kind("objective", self.objective, DenoisingScoreMatching, example)
            _law(self.objective)
        if self.sampler is not None:
            check_kind("sampler", self.sampler, Sampler, "Sampler(DDIM(), UniformLam(20))")
        if self.data is not None:
            object.__setattr__(self, "data", as_source(self.data))
        elif self.sampler is None:
            raise ValueError("Watch needs something to look at: data=..., sampler=..., or both")


class Look:
    """One training that is watched.

    Args:
        watch: how.
        source: the training data, whose events and range the pictures have.
        classes: of the model.
        objective: of the training.
        folder: `out`.
        place: the device.

    Raises:
        ValueError, TypeError: where the watch does not fit the training.
        ImportError: without matplotlib.
    """

    def __init__(
        self,
        watch: Watch,
        source: Source,
        classes: int,
        objective: Objective,
        folder: Path,
        place: torch.device,
    ):
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError("Watch draws with matplotlib: pip install 'scoregen[bench]'")
        self.watch, self.source, self.classes = watch, source, classes
        self.folder, self.place = folder, place
        self.held_out: Source | None = None
        self.batch: Batch | None = None
        if watch.data is not None:
            self.held_out = as_source(watch.data, classes)
            if self.held_out.event != source.event:
                raise ValueError(
                    f"the held-out data have the event {self.held_out.event}, and the data of the "
                    f"training {source.event}"
                )
            own = watch.objective
            if own is None and isinstance(objective, DenoisingScoreMatching):
                own = objective
            if own is None:
                raise TypeError(
                    "the loss per level is that of denoising score matching, which "
                    f"{type(objective).__name__} is not: choose one, "
                    "Watch(objective=DenoisingScoreMatching())"
                )
            _law(own)
            self.objective = own
            self.batch = next(self.held_out.serve(watch.samples, watch.seed, device=place))
        event = source.event
        if watch.sampler is not None and not (len(event) == 3 and event[0] in (1, 3)):
            raise ValueError(
                f"a strip shows images of 1 or 3 channels, (channels, height, width), and samples "
                f"have the shape {event}: leave the sampler out"
            )

    def due(self, step: int, steps: int) -> bool:
        """Whether this step of so many is followed by a look."""
        return step % self.watch.every == 0 or step == steps

    def loss(self, model: ScoreModel) -> Validation | None:
        """The held-out loss of the averaged weights, if there are data."""
        if self.batch is None:
            return None
        watch = self.watch
        return validate(model, self.batch, self.objective, levels=watch.levels, seed=watch.seed)

    def best(self) -> float:
        """The lowest held-out loss so far, which the checkpoint `best` states."""
        try:
            extra: Mapping[str, Any] = card(self.folder / "best")["extra"]
            return float(extra["validation"])
        except CheckpointError:  # none yet
            return float("inf")

    def draw(self, model: ScoreModel, step: int) -> None:
        """One row of pictures, and the strip of all rows."""
        watch = self.watch
        if watch.sampler is None:
            return
        condition = {}
        if self.classes:
            condition["label"] = torch.arange(watch.pictures, device=self.place) % self.classes
        x = watch.sampler.sample(
            model,
            (watch.pictures, *self.source.event),
            seed=watch.seed,
            condition=condition,
            device=self.place,
        ).cpu()
        rows = probe(self.folder / "samples")
        low, high = (-1.0, 1.0) if self.source.range is None else self.source.range
        if self.source.units is not None and self.source.range is None:
            low, high = float(x.min()), max(float(x.max()), float(x.min()) + 1e-6)
        image(tile_images(x.float(), (low, high), columns=watch.pictures), rows / f"{step:09d}.png")
        strip(rows, self.folder / "samples.png", step)

    def picture(self) -> None:
        """The losses so far and the loss per level, as `training.png`."""
        coordinates = max(1, math.prod(self.source.event))
        curves(read(self.folder / FILE), self.folder / "training.png", coordinates)


def image(pixels: Tensor, path: Path) -> None:
    """Pixels in [0, 1] of shape (1 or 3, height, width) as a PNG, whole or not at all."""
    from matplotlib.image import imsave

    array = (pixels * 255).round().to(torch.uint8).movedim(0, -1).expand(-1, -1, 3)
    content = io.BytesIO()
    imsave(content, array.numpy(), format="png")
    write(path, content.getvalue())


def strip(rows: Path, path: Path, last: int) -> None:
    """The rows of pictures of a folder, up to a step, below one another."""
    from matplotlib.image import imread

    found = sorted(p for p in rows.glob("*.png") if re.fullmatch(r"\d{9}", p.stem))
    found = [p for p in found if int(p.stem) <= last]
    shown = [torch.from_numpy(imread(p)[..., :3].copy()).movedim(-1, 0) for p in found]
    same = [row for row in shown if row.shape == shown[-1].shape]
    image(torch.cat(same, dim=1), path)


def curves(rows: list[dict[str, Any]], path: Path, coordinates: int) -> None:
    """Training and held-out loss against the step, and the loss per level at each look.

    Args:
        rows: of the log.
        path: of the picture.
        coordinates: of a sample, by which the losses of the training are divided.
    """
    made = figure(9.0, 3.6)
    left, right = made.subplots(1, 2)
    losses = [(row["step"], row["loss"] / coordinates) for row in rows if row.get("loss")]
    if losses:
        left.plot(*zip(*losses, strict=True), color="0.6", linewidth=0.8, label="training, batches")
    looks = [row for row in rows if "validation" in row]
    if looks:
        found = [(row["step"], row["validation"]) for row in looks]
        left.plot(*zip(*found, strict=True), "o-", markersize=3, label="held out, averaged weights")
        for i, row in enumerate(looks):
            shade = 0.85 * (1 - i / max(1, len(looks) - 1))
            named = {"label": f"step {row['step']}"} if i in (0, len(looks) - 1) else {}
            right.plot(row["t"], row["levels"], "o-", color=str(shade), markersize=3, **named)
    left.set(xlabel="step", ylabel="loss per coordinate", yscale="log")
    right.set(xlabel="t, at equal shares of its law", ylabel="held-out loss", yscale="log")
    right.set_visible(bool(looks))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", frameon=False)
    written(made, path)


def row_of(step: int, found: Validation) -> dict[str, Any]:
    """A line of the log.

    >>> import json
    >>> json.dumps(row_of(3, Validation((0.5,), (1.0,))))
    '{"step": 3, "validation": 1.0, "t": [0.5], "levels": [1.0]}'
    """
    return {
        "step": step,
        "validation": found.loss,
        "t": list(found.t),
        "levels": list(found.losses),
    }
