"""Diffusion of codes: exact laws with linear autoencoders, and the way through a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_baselines import normal, ppca, seeded
from torch import Tensor, nn

from scoregen import (
    DDIM,
    MLP,
    VPSDE,
    Data,
    Gaussian,
    Sampler,
    ScoreNetwork,
    UniformLam,
    UniformTime,
    V,
    compare,
    fit,
    load,
    output_law,
    save,
)
from scoregen.data import Units
from scoregen.densities import gaussian_w2
from scoregen.guidance import ClassifierFree
from scoregen.latent import AutoEncoder, LatentModel, LinearAutoEncoder, check_autoencoder, encoded
from scoregen.metrics import FunctionMetric, MomentError

F64 = torch.float64
SDE = VPSDE(t_min=1e-5)
ACCURATE = Sampler(DDIM(), UniformLam(400))


def gaussian_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, covariance, eigenvalues (falling) and eigenvectors of a law of four coordinates."""
    a = normal(4, 4, seed=2)
    covariance = a @ a.mT / 4 + 0.05 * torch.eye(4, dtype=F64)
    values, vectors = (v.flip(-1) for v in torch.linalg.eigh(covariance))
    return normal(4, seed=3), covariance, values, vectors


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_pca_latent_diffusion_has_its_exact_law(scale: float) -> None:
    """W2^2 to the data is the sum of the discarded eigenvalues, whatever the scale of the codes."""
    mean, covariance, values, vectors = gaussian_data()
    pca = LinearAutoEncoder(mean, vectors.mT[:2])
    units = Units((0.0, 0.0), tuple((scale * values[:2].sqrt()).tolist()))
    inner = Gaussian(SDE, torch.zeros(2, dtype=F64), torch.full((2,), 1 / scale**2, dtype=F64))
    model = LatentModel(inner, pca, units)
    law = output_law(ACCURATE, SDE, inner.variances)
    # decode is affine: its columns by unit codes
    offset = model.decode(torch.zeros(1, 2, dtype=F64))[0]
    columns = (model.decode(torch.eye(2, dtype=F64)) - offset).mT
    found = columns @ torch.diag(law.variance) @ columns.mT
    exact = math.sqrt(float(values[2:].sum()))
    assert float(gaussian_w2(offset, found, mean, covariance)) == pytest.approx(exact, abs=2e-4)
    # and the samples, drawn by the very model: moments within six standard errors
    x = model.sample(ACCURATE, 4000, seed=0, dtype=F64)
    assert bool(((x.mean(0) - mean).abs() < 6 * (found.diagonal() / 4000).sqrt()).all())
    stderr = found.diagonal() * math.sqrt(2 / 4000)
    assert bool(((x.var(0) - found.diagonal()).abs() < 6 * stderr).all())


def test_pca_of_samples_finds_the_directions_of_largest_variance() -> None:
    _, covariance, _, vectors = gaussian_data()
    x = normal(5000, 4) @ torch.linalg.cholesky(covariance).mT
    pca = LinearAutoEncoder.pca(x, 2)
    from sklearn.decomposition import PCA

    theirs = PCA(2).fit(x.numpy())
    both = pca.basis @ torch.from_numpy(theirs.components_).mT
    assert torch.allclose(both.abs(), torch.eye(2, dtype=F64), atol=1e-8)
    assert torch.allclose(
        pca.decode(pca.encode(x)),
        torch.from_numpy(theirs.inverse_transform(theirs.transform(x.numpy()))),
        atol=1e-8,
    )
    assert float((pca.basis @ vectors[:, 2:]).abs().max()) < 0.2


def test_means_of_an_encoder_are_narrower_than_the_codes_it_was_trained_on() -> None:
    """Probabilistic PCA: decoded means (l - s2)^2 / l, decoded draws l - s2, with noise the MLE."""
    model, covariance, vectors, values, s2 = ppca()
    n = 40_000
    x = normal(n, 4, seed=5) @ torch.linalg.cholesky(covariance).mT
    for seed, wanted in ((None, (values[:2] - s2) ** 2 / values[:2]), (0, values[:2] - s2)):
        codes = encoded(model, Data(x), seed=seed)
        latent = LatentModel(Gaussian(SDE, torch.zeros(2), 1.0), model, codes.units)
        with torch.no_grad():
            decoded = latent.decode(codes.x)
        found = (decoded @ vectors).var(0)
        assert bool(((found[:2] - wanted).abs() < 6 * wanted * math.sqrt(2 / n)).all())
        assert float(found[2:].max()) < 1e-12
        # standardised codes, so the aggregated posterior is N(0, I) only for draws
        spread = torch.tensor(codes.units.std, dtype=F64)
        if seed is not None:
            assert bool(((spread**2 - 1).abs() < 6 * math.sqrt(2 / n)).all())
        else:
            shrunk = (values[:2] - s2) / values[:2]
            assert bool(((spread**2 - shrunk).abs() < 6 * shrunk * math.sqrt(2 / n)).all())


def labelled_images() -> Data:
    """Images (1, 4, 4) of two classes: bright above or bright below."""
    label = torch.arange(200) % 2
    x = 0.1 * normal(200, 1, 4, 4).float() - 0.5
    x[label == 0, :, :2] += 1.0
    x[label == 1, :, 2:] += 1.0
    return Data(x.clamp(-1, 1), label, (-1.0, 1.0))


class Patches(AutoEncoder):
    """Somebody's own autoencoder without weights: means of 2 x 2 patches, and their copies."""

    event, latent = (1, 4, 4), (1, 2, 2)

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return nn.functional.avg_pool2d(x, 2)

    def decode(self, z: Tensor) -> Tensor:
        return nn.functional.interpolate(z, scale_factor=2.0)


def conditional_model() -> tuple[LatentModel, Data]:
    data = labelled_images()
    codes = encoded(Patches(), data)
    assert codes.label is data.label
    net = seeded(lambda: MLP((1, 2, 2), hidden=32, classes=2))
    inner = ScoreNetwork(net, VPSDE(), V())
    for _ in fit(inner, codes, steps=100, batch=64, lr=5e-3, progress=False):
        pass
    assert codes.units is not None
    return LatentModel(inner.eval(), Patches(), codes.units), data


def test_conditions_and_guidance_pass_through_to_the_codes() -> None:
    model, data = conditional_model()
    label = torch.arange(60) % 2
    sampler = Sampler(DDIM(), UniformTime(12))
    for guided in (model, ClassifierFree(model, 1.5)):
        z = sampler.sample(guided, (60, 1, 2, 2), seed=0, condition={"label": label})
        x = model.decode(z)
        above = x[:, 0, :2].mean((1, 2)) - x[:, 0, 2:].mean((1, 2))
        assert float(((above > 0) == (label == 0)).double().mean()) > 0.9
    same = model.sample(sampler, 60, seed=0, condition={"label": label})
    assert torch.equal(
        same,
        model.decode(sampler.sample(model, (60, 1, 2, 2), seed=0, condition={"label": label})),
    )
    with pytest.raises(ValueError, match="labels must lie"):
        model.sample(sampler, 2, seed=0, condition={"label": 5})
    assert float((model.encode(data.x) - encoded(Patches(), data).x).abs().max()) < 1e-5


def test_a_comparison_measures_and_shows_decoded_samples(tmp_path: Path) -> None:
    mean, covariance, values, vectors = gaussian_data()
    pca = LinearAutoEncoder(mean, vectors.mT[:2])
    inner = Gaussian(SDE, torch.zeros(2), 1.0)
    units = Units((0.0, 0.0), tuple(values[:2].sqrt().tolist()))
    model = LatentModel(inner, pca.float(), units)
    result = compare(
        model,
        {"ddim": Sampler(DDIM(), UniformLam(40))},
        steps=[40],
        metrics=[MomentError.of(mean, covariance)],
        reference=normal(2000, 4).float(),
        event=model.event,
        decode=model.decode,
        out=tmp_path,
        progress=False,
    )
    (row,) = result.rows
    exact = math.sqrt(float(values[2:].sum()))
    assert abs(row.value - exact) < max(6 * row.stderr, 0.05)
    (shown,) = result.shown.values()
    assert shown.shape == (25, 4)  # data, not codes
    assert (tmp_path / "samples.png").is_file()


def test_pictures_of_latent_images_are_images(tmp_path: Path) -> None:
    inner = Gaussian(VPSDE(), torch.zeros(1, 2, 2), 1.0)
    model = LatentModel(inner, Patches(), Units((0.0,), (0.3,)))
    result = compare(
        model,
        {"ddim": Sampler(DDIM(), UniformLam(5))},
        steps=[5],
        metrics=[
            FunctionMetric(
                lambda x, y: float(x.mean()), direction="lower", biased=False, name="mean"
            )
        ],
        reference=labelled_images().x,
        event=model.event,
        decode=model.decode,
        samples=30,
        out=tmp_path,
        progress=False,
    )
    (shown,) = result.shown.values()
    assert shown.shape == (25, 1, 4, 4)
    assert torch.equal(shown[:, :, ::2, ::2], shown[:, :, 1::2, 1::2])  # copies of a patch


def test_a_latent_model_is_kept_in_a_checkpoint(tmp_path: Path) -> None:
    def build() -> LatentModel:
        net = ScoreNetwork(MLP((2,), hidden=8), VPSDE(), V())
        return LatentModel(
            net, LinearAutoEncoder(torch.zeros(3), torch.eye(3)[:2]), Units((0.0, 0.0), (1.0, 2.0))
        )

    model, other = seeded(build, 0), seeded(build, 1)
    save(model, tmp_path / "latent", event=(2,))
    back = load(tmp_path / "latent", model=other)
    sampler = Sampler(DDIM(), UniformTime(3))
    assert torch.equal(model.eval().sample(sampler, 4), back.sample(sampler, 4))


# Refusals


class Broken(Patches):
    """Its decode makes images of another size."""

    event = (1, 6, 6)


class Lossy(Patches):
    """Its encode makes codes of another size."""

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return x


class Choking(Patches):
    """Its decode takes other codes."""

    latent = (3,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_autoencoder(Broken()), r"Broken.decode must make .* = \(2, 1, 6, 6\)"),
        (lambda: check_autoencoder(Lossy()), "Lossy.encode must make"),
        (lambda: check_autoencoder(Choking()), "Choking.decode"),
        (lambda: check_autoencoder(nn.Linear(2, 2)), "must be an AutoEncoder"),
        (
            lambda: LatentModel(
                Gaussian(VPSDE(), torch.zeros(1, 2, 2), 1.0), Broken(), Units((0.0,), (1.0,))
            ),
            "Broken.decode must make",
        ),
        (
            lambda: LatentModel(
                Gaussian(VPSDE(), torch.zeros(5), 1.0), Patches(), Units((0.0,), (1.0,))
            ),
            "must be of codes",
        ),
        (
            lambda: LatentModel(
                Gaussian(VPSDE(), torch.zeros(1, 2, 2), 1.0),
                Patches(),
                Units((0.0, 0.0), (1.0, 1.0)),
            ),
            "1 channels",
        ),
        (
            lambda: LatentModel(
                Gaussian(VPSDE(), torch.zeros(1, 2, 2), 1.0), Patches(), Units((math.nan,), (1.0,))
            ),
            "means of units",
        ),
        (
            lambda: LatentModel(
                Gaussian(VPSDE(), torch.zeros(1, 2, 2), 1.0), Patches(), Units((0.0,), (0.0,))
            ),
            "stds of units",
        ),
        (lambda: LinearAutoEncoder(torch.full((2,), math.nan), torch.eye(2)), "finite"),
        (lambda: LatentModel(nn.Linear(2, 2), Patches(), Units((0.0,), (1.0,))), "score model"),
        (lambda: encoded(Patches(), Data(torch.zeros(3, 2))), "event"),
        (lambda: encoded(Patches(), Data(torch.zeros(3, 1, 4, 4))), "vary"),
        (lambda: encoded(Patches(), labelled_images(), seed=-1), "seed"),
        (lambda: LinearAutoEncoder(torch.zeros(2), torch.ones(1, 2)), "orthonormal"),
        (lambda: LinearAutoEncoder(torch.zeros(2), torch.eye(3)), "rows of 2"),
        (lambda: LinearAutoEncoder.pca(torch.zeros(5, 2), 3), "at most 2"),
        (lambda: LinearAutoEncoder.pca(torch.zeros(1, 2), 1), "two samples"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        seeded(call)
