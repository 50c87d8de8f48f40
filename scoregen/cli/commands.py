"""The commands; their signatures and docstrings are the command line's help."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch

from .._checks import check_count
from .._families import FAMILIES
from .._files import probe, write
from ..analysis import analyse as run_analysis
from ..analysis import table as analysis_table
from ..comparison import plot_samples
from ..flowmaps import FlowMapModel
from ..guidance import ClassifierFree
from ..likelihood import bits_report, bits_table
from ..models import ScoreModel, ScoreNetwork
from ..objectives import DenoisingScoreMatching
from ..sampling import Sampler
from ..training import fit
from ..tuning import load_sampler, recommended
from . import specs
from .inputs import (
    BUNDLED,
    card_of,
    data_of,
    device_of,
    drawable,
    event_of,
    model_of,
    network_of,
    units_of,
)
from .origins import Checkpoint, is_origin, origin


def train(
    out: Path,
    source: str = BUNDLED,
    *,
    network: str = "",
    process: str = "VPSDE",
    parameterization: str = "V",
    clock: str = "HalfLogSNR",
    steps: int = 5000,
    batch: int = 128,
    lr: float = 2e-3,
    ema: float = 0.999,
    label_dropout: float = 0.1,
    save_every: int = 1000,
    standardise: bool = False,
    mode: str | None = None,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Train a score network and write a checkpoint; interrupted, the same command goes on.

    Ctrl-C, SIGTERM and SIGHUP save first; a killed process loses at most --save-every steps.

    Args:
        out: folder of the run: the checkpoint in model/, and what a resumed training needs.
        source: "digits", a 2-D target (rings, moons, checkerboard, swiss_roll, eight_gaussians),
            or a file or folder of your own (.npy, .npz, .pt, .safetensors, idx, images).
        network: such as "UNet(width=24)" or "MLP(hidden=256)"; chosen from the data if empty.
        process: such as "VPSDE", "EDMSDE", "RectifiedSDE", "DiscreteVPSDE.linear(1000)".
        parameterization: what the network predicts: V, Eps, X0, Velocity, Score, EDM(0.5).
        clock: the time as it reads it: HalfLogSNR, RawTime(1000.0), LogSigma, Index.
        steps: optimiser steps.
        batch: samples per step.
        lr: peak learning rate.
        ema: decay of the averaged weights.
        label_dropout: share of labels replaced by the null class, for guidance.
        save_every: steps between two saves of checkpoint and resume file.
        standardise: train on data of mean 0 and standard deviation 1 per channel; `sample` undoes
            it.
        mode: what images are converted to: L, RGB, RGBA or "I;16".
        seed: of initial weights, data order and noise.
        device: cpu, cuda, ...; the best there is unless given.
    """
    place = device_of(device)
    content = data_of(source, "train", seed, mode)
    if standardise:
        content = content.standardised()
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)  # type: ignore[attr-defined]
        net = network_of(network, content)
    model = ScoreNetwork(
        net,
        specs.parse(process, "process"),
        specs.parse(parameterization, "parameterization"),
        specs.parse(clock, "clock"),
    )
    progress = fit(
        model,
        content,
        DenoisingScoreMatching(),
        steps=steps,
        batch=min(batch, len(content)),
        lr=lr,
        seed=seed,
        ema_decay=ema,
        label_dropout=label_dropout if content.label is not None else None,
        out=out,
        save_every=save_every,
        device=place,
    )
    last = None
    for done in progress:
        last = done
    if last is not None:
        print(f"loss {last.loss:.4f} after {last.step} steps")
    print(f"checkpoint: {out / 'model'}")


def sample(
    checkpoint: Checkpoint = BUNDLED,
    *,
    sampler: str = "",
    count: int = 64,
    label: int | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    out: Path = Path("runs/sample"),
    device: str | None = None,
) -> None:
    """Draw samples: samples.npy and a picture.

    Args:
        checkpoint: a folder, "digits" for the bundled network, "digits-map" for its flow map, or
            another library's: diffusers:FOLDER, edm:FILE,
            guided-diffusion:FILE(head_channels=64, event=(3, 64, 64)).
        sampler: SOLVER@GRID, such as "DDIM(eta=0.5)@Karras(50)" or "Dopri5@Times(1.0, 0.0)", or the
            file that `scoregen tune` wrote; the recommended one for 20 evaluations unless given,
            for a flow map one jump, "Jump@UniformAngle(1)".
        count: how many.
        label: class of all samples, for a class-conditional network.
        guidance: classifier-free guidance scale: 0 unconditional, 1 conditional, more extrapolates.
        seed: sample i depends only on the seed and i.
        out: folder for samples.npy and samples.png.
        device: cpu, cuda, ...
    """
    check_count("--count", count)
    model: ScoreModel = model_of(checkpoint, device)
    event, units = event_of(checkpoint), units_of(checkpoint)
    condition = {} if label is None else {"label": label}
    if guidance != 1.0:
        if label is None:
            raise ValueError("guidance needs a --label to guide towards")
        model = ClassifierFree(model, guidance)
    name, drawn_by = _sampler(sampler, model)
    probe(out)
    pictures = drawable("matplotlib")
    shape, watched = (count, *event), sys.stderr.isatty()
    x = drawn_by.sample(model, shape, seed=seed, condition=condition, progress=watched).cpu()
    x = x if units is None else units.restore(x)
    array = x.numpy()
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write(out / "samples.npy", content.getvalue())
    print(f"samples: {out / 'samples.npy'} {tuple(x.shape)}")
    if pictures:
        plot_samples({(name, float(count)): x[:100]}, out / "samples.png", unit="samples")
        print(f"picture: {out / 'samples.png'}")


def _sampler(text: str, model: ScoreModel) -> tuple[str, Sampler]:
    """What draws: a sampler written out, one fitted to this network, or the recommended one."""
    if not text and isinstance(model, FlowMapModel):
        return specs.parse_sampler("Jump@UniformAngle(1)")
    if not text:
        return "recommended", recommended(model, 20)
    if text.endswith(".json"):
        return Path(text).stem, load_sampler(text, model)
    return specs.parse_sampler(text)


def analyse(
    sampler: tuple[str, ...],
    /,
    *,
    process: str = "VPSDE",
    variances: tuple[float, ...] = (0.05, 0.5, 2.0),
    steps: tuple[int, ...] = (8, 16, 32, 64, 128),
    out: Path = Path("runs/analyse"),
) -> None:
    """The exact error of samplers on Gaussian data: no network, no Monte Carlo.

    Args:
        sampler: one or more [NAME=]SOLVER@GRID.
        process: such as "VPSDE", "EDMSDE", "RectifiedSDE".
        variances: eigenvalues of the data's covariance.
        steps: numbers of moves.
        out: folder for the table and the plot.
    """
    probe(out)
    named = dict(specs.parse_sampler(s) for s in sampler)
    sde = specs.parse(process, "process")
    pictures = drawable("matplotlib")
    rows = run_analysis(named, sde, variances, steps, out if pictures else None)
    print(analysis_table(rows))
    if not pictures:
        write(out / "analysis.md", f"{analysis_table(rows)}\n".encode())
    print(f"written to {out}")


def likelihood(
    checkpoint: Checkpoint = BUNDLED,
    source: str = BUNDLED,
    *,
    count: int = 297,
    exact: int = 16,
    probes: int = 4,
    knots: int = 500,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Bits per dimension of held-out data: the bound, Hutchinson's and the exact estimate.

    Args:
        checkpoint: a folder, "digits", or another library's, as in `scoregen sample`.
        source: quantised data, as in `scoregen train`; floating-point data have no bits per
            dimension.
        count: how many held-out samples.
        exact: how many of them get the exact trace.
        probes: Hutchinson probes.
        knots: of the chain that the bound is of.
        seed: of dequantisation and probes.
        device: cpu, cuda, ...
    """
    check_count("--count", count)
    held_out = data_of(source, "test")
    if held_out.bins is None or held_out.range is None:
        raise ValueError(
            f"{held_out.name} has no levels, so no bits per dimension; use scoregen.log_prob for "
            "its density in nats"
        )
    model = model_of(checkpoint, device)
    if is_origin(checkpoint) and event_of(checkpoint) != tuple(held_out.x.shape[1:]):
        raise ValueError(
            f"{checkpoint} takes samples of shape {event_of(checkpoint)}, those of "
            f"{held_out.name} are of shape {tuple(held_out.x.shape[1:])}"
        )
    rows = bits_report(
        model,
        held_out.x[:count].to(model.placement()[0]),
        bins=held_out.bins,
        data_range=held_out.range,
        knots=knots,
        probes=probes,
        exact=exact,
        seed=seed,
    )
    print(bits_table(rows))


def info(checkpoint: Checkpoint = BUNDLED) -> None:
    """What a checkpoint is: its card, or the names that the command line knows.

    Args:
        checkpoint: a folder, "digits", "digits-map", another library's, as in `scoregen sample`, or
            "names" for all solvers, grids, processes and metrics.
    """
    if checkpoint == "names":
        for family in FAMILIES:
            print(f"{family}: {', '.join(specs.known_names(family))}")
        return
    model = model_of(checkpoint, "cpu")
    card = str(origin(checkpoint).card) if is_origin(checkpoint) else None
    print(json.dumps(card_of(checkpoint), indent=1) if card is None else card)
    count = sum(p.numel() for p in model.parameters())
    first, last = model.sde.level(model.sde.t_min), model.sde.level(model.sde.t_max)
    print(
        f"{count:,} parameters; log(alpha / sigma) from {first.lam:.3g} at t_min = "
        f"{model.sde.t_min:g} to {last.lam:.3g} at t_max = {model.sde.t_max:g}"
    )
