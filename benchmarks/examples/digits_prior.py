"""The digits network as a prior: half of a noisy digit is seen, the rest is sampled.

    python benchmarks/examples/digits_prior.py

Writes docs/_static/examples/digits_prior.png and .txt.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import scoregen as sg

OUT = Path(__file__).resolve().parents[2] / "docs" / "_static" / "examples"
NOISE = 0.3


class SeenHalf(sg.EnergyModel):
    """-log N(y; M x0, s^2) at noise level t: |M (x / alpha - y)|^2 / 2 (s^2 + sigma^2 / alpha^2).

    An approximation at t > 0, exact as t goes to 0, where the chains end.
    """

    def __init__(self, sde: sg.SDE, y: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.sde, self.y, self.mask = sde, y, mask

    def energy(self, x: Tensor, t: sg.Level, **condition: Any) -> Tensor:
        gap = self.mask * (x / t.alpha - self.y)
        return gap.square().flatten(1).sum(1) / (2 * (NOISE**2 + (t.sigma / t.alpha) ** 2))


def grid(sde: sg.SDE, levels: int, repeats: int) -> sg.Times:
    """`repeats` moves at each of `levels` noise levels from strong to weak, then x0."""
    ends = torch.tensor([0.95 * sde.t_max, 0.05], dtype=torch.float64)
    lam = torch.linspace(*sde.lam(ends).tolist(), levels, dtype=torch.float64)
    times = sde.time(lam).clamp(max=sde.t_max).repeat_interleave(repeats).tolist()
    return sg.Times(*times, times[-1], 0.0)


def main() -> None:
    torch.set_num_threads(1)
    prior, test = sg.digits_model(), sg.digits("test")
    picked = torch.tensor([3, 9, 14, 21, 40, 57])
    truth, copies = test.x[picked], 8
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    g = torch.Generator().manual_seed(0)
    y = mask * (truth + NOISE * torch.randn(truth.shape, generator=g))
    each = y.repeat_interleave(copies, 0)
    null = torch.full((len(each),), 10)
    model = sg.energies.Product(prior.given(label=null), SeenHalf(prior.sde, each, mask))

    def step(t: sg.Level) -> float:
        """A quarter of the smaller variance that the level allows."""
        seen = t.alpha**2 * (NOISE**2 + (t.sigma / t.alpha) ** 2)
        return 0.25 * min(t.sigma**2, seen)

    lines = [
        "| sampler | evaluations of the prior | acceptance | seen half: residual / noise "
        "| hidden half: RMS error of the mean | of a draw |",
        "|---|---|---|---|---|---|",
    ]
    pictures = {}
    schedules = {
        "prior alone": (sg.Langevin(step), prior.given(label=null)),
        "annealed Langevin": (sg.Langevin(step), model),
        "annealed MALA": (sg.MALA(step), model),
    }
    for name, (solver, target) in schedules.items():
        before, rates = time.perf_counter(), []
        sampler = sg.Sampler(solver, grid(prior.sde, 20, 12))
        x = torch.randn(each.shape, generator=torch.Generator().manual_seed(1))
        noise = sg.noise.SampleNoise(2)
        with torch.no_grad(), sg.models.Counted(prior) as count:
            for move in sampler.iterate(target, x, noise=noise):
                x = move.x
                if hasattr(move.state, "acceptance"):
                    rates.append(float(move.state.acceptance.mean()))
        x = x.clamp(-1, 1)
        draws = x.reshape(len(picked), copies, 1, 8, 8)
        hidden = 1 - mask
        mean = draws.mean(1)
        seen = (
            float(((mask * (draws - y.unsqueeze(1))).square().sum() / mask.sum()) / len(x)) ** 0.5
        )
        of_mean = float((hidden * (mean - truth)).square().sum() / hidden.sum() / len(mean)) ** 0.5
        gap = hidden * (draws - truth.unsqueeze(1))
        of_draw = float(gap.square().sum() / hidden.sum() / len(x)) ** 0.5
        rate = f"{sum(rates) / len(rates):.2f}" if rates else "-"
        rows = count.rows / len(each)
        lines.append(
            f"| {name} | {rows:.0f} | {rate} | {seen / NOISE:.2f} | {of_mean:.2f} | {of_draw:.2f} |"
        )
        print(lines[-1], f"{time.perf_counter() - before:.0f} s")
        pictures[name] = draws

    fig, axes = plt.subplots(len(picked), 11, figsize=(9, 5.2), layout="constrained")
    for i, row in enumerate(axes):
        shown = [truth[i, 0], torch.where(mask[0, 0] > 0, y[i, 0], torch.nan)]
        for name in ("annealed Langevin", "annealed MALA"):
            shown += [*pictures[name][i, :3, 0], pictures[name][i].mean(0)[0]]
        shown.insert(6, torch.full((8, 8), torch.nan))
        for ax, image in zip(row, shown, strict=True):
            ax.imshow(image, cmap="gray_r", vmin=-1, vmax=1)
            ax.axis("off")
    for k, title in ((0, "truth"), (1, "seen"), (3, "annealed Langevin"), (5, "mean"),
                     (8, "annealed MALA"), (10, "mean")):  # fmt: skip
        axes[0, k].set_title(title, fontsize=8)
    OUT.mkdir(parents=True, exist_ok=True)
    fig.savefig(OUT / "digits_prior.png", dpi=110)
    (OUT / "digits_prior.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
