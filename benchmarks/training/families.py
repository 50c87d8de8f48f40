"""Train every family of models on the digits and on two moons in the plane, and compare them.

    OMP_NUM_THREADS=1 python benchmarks/training/families.py [--only NAME ...] [--data digits moons]
        [--train] [--out runs/families] [--page docs/_generated]

At most fifteen minutes on two CPU cores. What is trained or measured is kept under `--out`, and a
second call goes on where the first one stopped. Writes families_digits.txt and families_moons.txt,
the tables, and families.png, samples of every row. Every row sees the training split alone; quality
is measured against the held-out digits, or moons of another seed, and so is the likelihood.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import scoregen as sg
from scoregen import likelihood
from scoregen._files import write
from scoregen.baselines import (
    GAN,
    VAE,
    Autoregressive,
    BlockGibbs,
    BoltzmannMachine,
    ConditionalGAN,
    Flow,
    HierarchicalVAE,
    MixtureFit,
    NaiveBayes,
    Perceptron,
    Sampled,
    WassersteinGAN,
)
from scoregen.comparison import Comparison
from scoregen.energies import GeometricPath
from scoregen.latent import LatentModel, encoded
from scoregen.mcmc import annealed_importance
from scoregen.metrics import (
    KID,
    MMD,
    Coverage,
    Precision,
    SlicedWasserstein,
    digits_features,
)
from scoregen.noise import SampleNoise
from scoregen.objectives import (
    PersistentContrastiveDivergence,
    ReplayBuffer,
    Stratified,
    Unit,
)
from scoregen.training import TrainStep

OUT, PAGE = Path("runs/families"), Path(__file__).parents[2] / "docs" / "_generated"
FEW = sg.Sampler(sg.DPMSolverPP(), sg.UniformLam(20))


@dataclass(frozen=True)
class Set:
    """A data set: what is trained on, what is measured against, and where families are kept."""

    name: str
    train: sg.Data
    test: sg.Data
    out: Path

    @property
    def digits(self) -> bool:
        return self.name == "digits"

    @property
    def d(self) -> int:
        return math.prod(self.train.event)


def arcs() -> Tensor:
    """The two half circles of the moons without their noise, shape (2, angles, 2)."""
    angle = (torch.arange(2000, dtype=torch.float64) + 0.5) * math.pi / 2000
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return torch.stack([upper, -upper])


def moons(n: int, seed: int) -> sg.Data:
    """Points on two half circles; the class is the nearer one."""
    x = sg.data.moons(n, seed)
    near = torch.stack([torch.cdist(x, arc.float()).amin(1) for arc in arcs()])
    return sg.Data(x, near.argmin(0), name="moons")


def data_set(name: str, out: Path = OUT) -> Set:
    if name == "digits":
        return Set(name, sg.digits("train"), sg.digits("test"), out)
    return Set(name, moons(4000, 0), moons(1000, 1), out)


# How each family is built and trained: (data) -> module, (module, data) -> None.
# All of about 0.1 M parameters on the digits where the family has a choice, and half a minute.


def mixture(s: Set) -> nn.Module:
    return MixtureFit(s.train.event, 24, "diag") if s.digits else MixtureFit((2,), 24)


def naive(s: Set) -> nn.Module:
    return NaiveBayes(s.train.event, 10 if s.digits else 2)


def autoregressive(s: Set) -> nn.Module:
    return (
        Autoregressive((1, 8, 8), (96,), bins=8)
        if s.digits
        else (Autoregressive((2,), (128, 128), bins=24))
    )


def flow(s: Set) -> nn.Module:
    return Flow(s.train.event, 4, (48,), bins=4) if s.digits else Flow((2,), 4, (64, 64))


def machine(s: Set) -> nn.Module:
    mean = s.train.x.mean(0)
    return (
        BoltzmannMachine(s.train.event, 64, std=0.4, mean=mean)
        if s.digits
        else (BoltzmannMachine((2,), 12, std=0.3, mean=mean))
    )


def decoder(k: int, s: Set, wide: int) -> tuple[nn.Module, float | None, bool]:
    """Of digits mean and log variance; of points the mean, with one variance that starts small."""
    if s.digits:
        return Perceptron((k,), (2, 8, 8), wide), None, False
    return Perceptron((k,), (2,), wide), 0.01, True


def autoencoder(s: Set) -> nn.Module:
    k, wide = 16 if s.digits else 2, 128
    down, variance, noisy = decoder(k, s, wide)
    up = Perceptron(s.train.event, (2 * k,), wide)
    return VAE(up, down, s.train.event, k, variance=variance, noisy=noisy)


def hierarchy(s: Set) -> nn.Module:
    k, wide = (16, 16) if s.digits else (2, 2), 128
    first, variance, noisy = decoder(k[0], s, wide)
    up = [Perceptron(s.train.event, (2 * k[0],), wide), Perceptron((k[0],), (2 * k[1],), wide)]
    down = [first, Perceptron((k[1],), (2 * k[0],), wide)]
    return HierarchicalVAE(up, down, s.train.event, k, variance=variance, noisy=noisy)


def adversarial(s: Set, classes: int = 0) -> tuple[nn.Module, nn.Module, tuple[int, ...], int]:
    k, wide = (16, 160) if s.digits else (2, 128)
    up = Perceptron((k,), s.train.event, wide, 3, classes)
    return up, Perceptron(s.train.event, (), wide, 3, classes), s.train.event, k


def gan(s: Set) -> nn.Module:
    return GAN(*adversarial(s), penalty=0.2 if s.digits else 0.02)


def conditional(s: Set) -> nn.Module:
    classes = 10 if s.digits else 2
    return ConditionalGAN(*adversarial(s, classes), classes, penalty=0.2 if s.digits else 0.02)


def wasserstein(s: Set) -> nn.Module:
    return WassersteinGAN(*adversarial(s), penalty=10.0 if s.digits else 0.5)


def diffusion(s: Set) -> nn.Module:
    if s.digits:
        return sg.digits_model()
    return sg.ScoreNetwork(sg.MLP((2,), hidden=96, depth=3), sg.VPSDE(), sg.V())


def latent(s: Set) -> nn.Module:
    """Diffusion of the codes of the VAE, which is trained first."""
    inner = trained("VAE", s)[0]
    k = inner.latent[0]
    net = sg.MLP((k,), hidden=96, depth=3, classes=10 if s.digits else 2)
    units = encoded(inner, s.train, seed=0).units
    return LatentModel(sg.ScoreNetwork(net, sg.VPSDE(), sg.V()), inner, units)


def descent(digits: int, moons: int, **options: Any) -> Callable[[Any, Set], None]:
    """Training for so many steps on either data set, without labels unless the family has classes."""

    def train(model: Any, s: Set) -> None:
        data = s.train if model.classes else s.train.unlabelled()
        model.fit(data, steps=digits if s.digits else moons, **options)

    return train


def fitted(model: Any, s: Set) -> None:
    model.fit(s.train if model.classes else s.train.unlabelled())


def contrast(model: Any, s: Set) -> None:
    chains = ReplayBuffer(s.train.x[:512].clone(), restart=0.02)
    gibbs = sg.Sampler(BlockGibbs(), sg.Constant(0.0, 5))
    objective = PersistentContrastiveDivergence(gibbs, chains)
    steps = sg.fit(
        model,
        s.train.unlabelled(),
        objective,
        steps=3000 if s.digits else 2000,
        batch=128,
        lr=2e-3 if s.digits else 1e-2,
    )
    averaged(model, steps)


def averaged(model: nn.Module, steps: Iterator[TrainStep]) -> None:
    """Run a training of score models to its end, and keep the average of the weights."""
    *_, last = steps
    model.load_state_dict(last.ema.state_dict())


def denoise(model: Any, s: Set) -> None:
    objective = sg.DenoisingScoreMatching(law=Stratified(), weight=Unit(sg.V()))
    if not s.digits:
        averaged(model, sg.fit(model, s.train.unlabelled(), objective, steps=2000, batch=128))


def denoise_codes(model: Any, s: Set) -> None:
    objective = sg.DenoisingScoreMatching(law=Stratified(), weight=Unit(sg.V()))
    codes = encoded(model.autoencoder, s.train, seed=0)
    averaged(
        model.model,
        sg.fit(model.model, codes, objective, steps=3000 if s.digits else 1500, batch=128),
    )


RECIPES: dict[str, tuple[Callable[[Set], Any], Callable[[Any, Set], Any]]] = {
    "Gaussian mixture (EM)": (mixture, fitted),
    "naive Bayes": (naive, fitted),
    "autoregressive (MADE, splines)": (autoregressive, descent(1500, 800, lr=3e-3)),
    "flow (spline coupling)": (flow, descent(700, 500, lr=3e-3)),
    "Boltzmann machine": (machine, contrast),
    "VAE": (autoencoder, descent(4000, 5000)),
    "hierarchical VAE": (hierarchy, descent(3000, 1500)),
    "GAN": (gan, descent(3000, 1200, lr=1e-3)),
    "conditional GAN": (conditional, descent(2500, 1000, lr=1e-3)),
    "Wasserstein GAN": (wasserstein, descent(800, 500, lr=1e-3, critic_steps=3)),
    "diffusion": (diffusion, denoise),
    "latent diffusion (of the VAE)": (latent, denoise_codes),
}


def trained(name: str, s: Set) -> tuple[Any, float]:
    """A family, trained now or before, and the seconds of CPU time that took."""
    build, train = RECIPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(s)
    stem = s.out / f"{s.name} {name}"
    if stem.with_suffix(".safetensors").is_file():
        model.load_state_dict(safetensors.torch.load_file(stem.with_suffix(".safetensors")))
        return model.eval(), json.loads(stem.with_suffix(".json").read_text())["seconds"]
    began = time.process_time()
    train(model, s)
    seconds = time.process_time() - began
    s.out.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(state, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps({"seconds": seconds}))
    print(f"{s.name} {name}: {seconds:.0f} s of CPU time", flush=True)
    return model.eval(), seconds


def rows_of(name: str, model: Any, s: Set) -> dict[str, Any]:
    """The rows of a trained family."""
    if name == "Boltzmann machine":
        chain = sg.Sampler(BlockGibbs(), sg.Constant(0.0, 1000))
        return {name: Sampled(model, chain, s.train.event, evaluations=1000)}
    if name == "diffusion":
        return {name: Sampled(model, FEW, s.train.event)}
    if name == "latent diffusion (of the VAE)":
        return {name: Sampled(model, FEW, model.event, decode=model.decode)}
    if name == "GAN":
        chain = sg.Sampler(sg.MALA(0.05), sg.Constant(0.0, 60))
        energy = sg.Potential(model.latent_energy)
        moved = Sampled(energy, chain, (model.latent,), decode=model.generated)
        return {name: model, "GAN, latent MALA on the critic": moved}
    return {name: model}


def log_density(name: str, model: Any, s: Set) -> tuple[Tensor, str] | None:
    """(log p of the held-out data, how it is known); of dequantised digits."""
    x = s.test.x
    if s.digits:
        g = torch.Generator().manual_seed(1)
        x = likelihood.dequantise(x, bins=17, data_range=(-1.0, 1.0), generator=g)
    if name == "Boltzmann machine":
        if len(model.c) <= 20:
            return model.log_prob(x).detach(), "exact"
        rows = s.train.x.flatten(1).double()
        wide = torch.cov(rows.T) + 0.02 * torch.eye(s.d, dtype=torch.float64)
        start = sg.Gaussian(sg.StaticSDE(), s.train.x.mean(0), wide)
        found = annealed_importance(
            sg.MALA(0.02),
            sg.UniformTime(1000),
            GeometricPath(start, model),
            start.sample(200).float(),
            noise=SampleNoise(0),
        )
        print(
            f"log Z {found.log_z:.2f} in [{found.low:.2f}, {found.high:.2f}], ESS {found.ess:.0f}"
        )
        return -sg.energies.energy_of(model, x).detach() - found.log_z, "annealed"
    if name == "diffusion":
        few = x[:64] if s.digits else x
        trace = likelihood.Hutchinson(1) if s.digits else likelihood.Exact()
        found = likelihood.log_prob(model, few, trace=trace, rtol=1e-3, atol=1e-3)
        return found.value.detach(), "ODE"
    kind = getattr(type(model), "likelihood", "none")
    if kind == "exact":
        with torch.no_grad():
            return model.log_prob(x), kind
    if kind == "bound":
        return model.importance_bound(x, samples=100), kind
    return None


def truth(s: Set) -> Tensor:
    """log p of the held-out points under the law of the moons: the mean over both half circles."""
    points = arcs().flatten(0, 1)
    square = torch.cdist(s.test.x.double(), points).square() / (2 * 0.06**2)
    return (-square).logsumexp(1) - math.log(len(points) * 2 * math.pi * 0.06**2)


def units(value: Tensor, s: Set) -> tuple[float, float]:
    """Mean and standard error: bits per dimension of the digits, nats of points."""
    if s.digits:
        value = likelihood.bits_per_dim(
            value, s.d, bins=17, data_range=(-1.0, 1.0), dequantised=True
        )
    return float(value.mean()), float(value.std()) / math.sqrt(len(value))


def parameters(model: nn.Module) -> int:
    """Trained numbers; the fitted ones of a mixture stand in buffers."""
    count = sum(p.numel() for p in model.parameters())
    return count or sum(b.numel() for b in model.buffers())


def metrics_of(s: Set) -> list[Any]:
    if s.digits:
        return [
            KID(digits_features),
            Precision(digits_features),
            Coverage(digits_features),
        ]
    return [SlicedWasserstein(), MMD(0.1), Coverage()]


SAMPLES, SEEDS = {"digits": 500, "moons": 1000}, (0, 1, 2)


def measured(s: Set, rows: dict[str, Any]) -> Comparison:
    """Every row at equal n, three seeds, against what no row has seen; with real data as a floor."""
    floor = s.train.x[torch.randperm(len(s.train), generator=torch.Generator().manual_seed(0))]
    return sg.compare(
        {},
        {},
        baselines=rows,
        metrics=metrics_of(s),
        reference=s.test.x,
        seeds=SEEDS,
        samples=SAMPLES[s.name],
        floor=floor,
        show=1000,
        pictures=False,
        out=s.out / f"{s.name} comparison",
        data_range=(-1.0, 1.0),
    )


def table(s: Set, found: Comparison, notes: dict[str, dict[str, Any]]) -> str:
    """The markdown table of a data set; intervals are of 95 %."""
    names = found.metrics
    short = [name.partition("(")[0].strip() for name in names]
    known = "bits per dimension" if s.digits else "nats"
    head = ["family", *short, known, "s per 1,000", "evaluations", "parameters", "training, s"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    by = {(x.name, x.metric): x for x in found.summaries}
    floors = found.manifest["floor"]
    cells = [f"{floors[n]['value']:.2g}" if n in floors else "" for n in names]
    exact = "" if s.digits else "{:.3f} ± {:.3f} (its law)".format(*units(truth(s), s))
    lines.append("| " + " | ".join(["*training data*", *cells, exact, "", "", "", ""]) + " |")
    for family, note in notes.items():
        sums = [by[family, name] for name in names]
        cells = [f"{x.value:.3g} ± {(x.high - x.low) / 2:.1g}" for x in sums]
        first = sums[0]
        speed = 1000 * first.seconds / first.count
        cells += [note["log p"], f"{speed:.2g}" if speed < 10 else f"{speed:.0f}", f"{first.nfe:g}"]
        cells += [f"{note['parameters']:,}", note["seconds"]]
        lines.append("| " + " | ".join([family, *cells]) + " |")
    return "\n".join(lines) + "\n"


def picture(found: dict[str, Comparison], path: Path) -> None:
    """Samples of every row on both data sets, beside real data."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ["held-out data", *dict.fromkeys(x.name for f in found.values() for x in f.summaries)]
    columns = 5
    height = 2 * -(-len(names) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(2.1 * columns, 2.15 * height))
    for axis in axes.flat:
        axis.axis("off")
    for k, name in enumerate(names):
        for j, key in enumerate(found):
            row, column = 2 * (k // columns) + j, k % columns
            shown = {n: x for (n, _), x in found[key].pictured(400).items()}
            shown["held-out data"] = data_set(key).test.x[:400]
            if name not in shown:
                continue
            axis, x = axes[row, column], shown[name]
            if j == 0:
                axis.set_title(name, fontsize=7)
            if key == "digits":
                framed = nn.functional.pad(x[:36, 0], (1, 1, 1, 1), value=-1.0)
                tiles = framed.reshape(6, 6, 10, 10).transpose(1, 2).reshape(60, 60)
                axis.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1)
            else:
                axis.scatter(*x.T, s=0.6, color="black")
                axis.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument(
        "--data", nargs="+", choices=["digits", "moons"], default=["digits", "moons"]
    )
    parser.add_argument("--train", action="store_true", help="train alone, without the comparison")
    parser.add_argument("--out", type=Path, default=OUT, help="where trained families are kept")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="where tables and picture are written"
    )
    options = parser.parse_args()
    began = time.process_time()
    text, comparisons = [], {}
    for name in options.data:
        s, rows, notes = data_set(name, options.out), {}, {}
        for family in options.only:
            model, seconds = trained(family, s)
            if options.train:
                continue
            found = log_density(family, model, s)
            value = (
                "none"
                if found is None
                else "{:.3f} ± {:.3f}".format(*units(found[0], s)) + f" ({found[1]})"
            )
            print(f"{name} {family}: {value}, {parameters(model)} parameters", flush=True)
            for row, made in rows_of(family, model, s).items():
                rows[row] = made
                own = row == family
                bundled = family == "diffusion" and s.digits
                notes[row] = {
                    "log p": value if own else "none",
                    "parameters": parameters(model),
                    "seconds": "bundled" if bundled else f"{seconds:.0f}",
                }
        if not options.train:
            comparisons[name] = measured(s, rows)
            text.append(table(s, comparisons[name], notes))
    if options.train:
        return
    figures = {
        k: {f"{x.name}: {x.metric}": x.value for x in f.summaries} for k, f in comparisons.items()
    }
    if set(options.only) == set(RECIPES) and len(options.data) == 2:
        write(options.page / "families_digits.txt", text[0].encode())
        write(options.page / "families_moons.txt", text[1].encode())
        picture(comparisons, options.page / "families.png")
    else:
        picture(comparisons, options.out / "families.png")
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1))
    print("\n\n".join(text))
    print(f"{time.process_time() - began:.0f} s of CPU time")


if __name__ == "__main__":
    main()
