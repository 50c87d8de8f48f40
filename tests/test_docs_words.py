"""The dictionaries of the pages are code that runs; their tables say what the classes declare."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoregen as sg
from scoregen import grids, metrics, processes

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
API = re.findall(r"^api/(\w+)$", (REFERENCE / "api.md").read_text(), flags=re.M)


class Network(nn.Module):
    """A network with labels, and with another condition."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)

    def forward(self, x: Tensor, time: Tensor, label: Any = None, y: Any = None) -> Tensor:
        return self.body(x)


class Quadratic(nn.Module):
    """torchebm's interface."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(1) / 2

    def gradient(self, x: Tensor) -> Tensor:
        return x


class Denoiser(nn.Module):
    """The interfaces of azula and k-diffusion."""

    sigma_min, sigma_max = 0.01, 80.0

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(1.57 * t), torch.sin(1.57 * t) + 1e-3

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(mean=0 * x)


def names() -> dict[str, Any]:
    """Every public name, the packages, and what the small letters of the tables stand for."""
    found: dict[str, Any] = {"sg": sg}
    for name in API:
        package = importlib.import_module(f"scoregen.{name}")
        found |= {name: package} | {public: getattr(package, public) for public in package.__all__}
    found |= {public: getattr(sg, public) for public in sg.__all__}  # these are meant first
    net, sde = Network(), sg.VPSDE()
    takes = sg.models.Conditions({"label": 10, "y": 0.0}, classes=10)
    model = sg.ScoreNetwork(net, sde, sg.V(), conditions=takes)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    gaussian = sg.Gaussian(sde, torch.zeros(2), 1.0)
    return found | {
        "net": net, "sde": sde, "x": x, "x0": x, "eps": x, "y": x, "data": x, "t": 0.5,
        "times": torch.tensor([0.5]), "model": model, "worse": model, "law": gaussian,
        "a": gaussian, "b": gaussian, "chain": sg.Gaussian(sg.DiscreteVPSDE.linear(4), x[0], 1.0),
        "energy": sg.Potential(lambda x: x.square().sum(1) / 2), "ebm": Quadratic(),
        "f": lambda x: x.square().sum(1), "reward": lambda x: x.sum(1), "denoiser": Denoiser(),
        "prior": torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        "mean": torch.zeros(2), "weights": (1.0,), "means": ((0.0,),), "covariances": (((1.0,),),),
        "noise": sg.noise.SampleNoise(0),
        "g": torch.Generator().manual_seed(0), "objective": sg.DenoisingScoreMatching(),
        "sampler": sg.Sampler(sg.DDIM(), sg.UniformLam(3)), "grid": sg.UniformLam(3),
        "solver": sg.Ancestral(), "predictor": sg.DDIM(), "corrector": sg.Langevin(0.001),
        "tableau": found["EULER"], "parameterization": sg.V(), "clock": sg.HalfLogSNR(),
        "time_law": found["UniformLaw"](), "weight": found["Simple"](),
        "langevin": sg.Sampler(sg.Langevin(0.01), sg.Constant(0.0, 3)),
        "sigma_data": 0.5, "sigmas": (1.0, 0.1),
        "h": 0.01, "c": True, "kind": "ve", "i": 3, "n": 8, "N": 10, "steps": 8, "order": 2, "p": 2,
        "eta": 0.5, "scale": 2.0, "w": 1.0, "churn": 0.1, "snr": 0.16, "shift": 3.0, "low": 0.01,
        "high": 50.0, "beta_min": 0.1, "beta_max": 20.0, "sigma_min": 0.01, "sigma_max": 50.0,
        "probes": 2, "form": "x0", "gamma": 5.0, "temperature": 2.0, "r_min": 0.05, "r_max": 50.0,
        "inflate": 1.003,
    }  # fmt: skip


# What reads a file or needs another library; tests of the importers run these.
ELSEWHERE = {"path", "source", "to_torchebm"}


def codes(page: str) -> list[str]:
    """The calls in the right columns of a page's tables."""
    rows = [line for line in (REFERENCE / page).read_text().splitlines() if line[:2] == "| "]
    found = [code for row in rows for code in re.findall(r"`([^`]+)`", row.split(" | ")[-1])]
    return [code for code in found if "(" in code or " ** " in code]


@pytest.mark.parametrize("page", ["coming-from.md", "glossary.md"])
def test_the_right_column_runs(page: str) -> None:
    wrong, left = [], []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        known = names()
        for code in codes(page):
            free = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
            if free & ELSEWHERE:
                left.append(code)
                continue
            try:
                eval(code, known)
            except Exception as error:
                wrong.append(f"{code}: {type(error).__name__}: {error}")
    assert wrong == []
    assert len(left) < 8, left
    assert len(codes(page)) > 40


def table(page: str) -> dict[str, list[str]]:
    """Cells of the rows that begin with a class, by the name of the class."""
    text = (REFERENCE / page).read_text()
    rows = re.findall(r"^\| \{py:class\}`~[\w.]+\.(\w+)` \| (.*) \|$", text, flags=re.M)
    assert len(rows) == len(dict(rows))
    return {name: cells.split(" | ") for name, cells in rows}


def public_classes(package: Any) -> set[str]:
    return {name for name in package.__all__ if isinstance(getattr(package, name), type)}


def test_the_table_of_metrics_says_what_they_declare() -> None:
    rows = table("metrics.md")
    for name, (_, better, moves) in rows.items():
        metric = getattr(metrics, name)
        assert better == metric.direction, name
        assert moves == {True: "yes", False: "no"}[metric.biased], name
    others = {"DigitsClassifier", "Estimate", "FunctionMetric", "InceptionFeatures", "Measured",
              "Metric", "TwoSample"}  # fmt: skip
    assert set(rows) == public_classes(metrics) - others


def test_the_table_of_processes_has_their_times() -> None:
    rows = table("processes.md")
    for name, cells in rows.items():
        if name.startswith("Discrete"):
            continue
        sde = getattr(processes, name)()
        if name == "VESDE":  # its first time is stated in words
            assert float(cells[2].rpartition("to ")[2]) == sde.t_max
            continue
        low, high = cells[2].strip("[]").split(", ")
        assert (float(low), float(high)) == (sde.t_min, sde.t_max), name
    assert set(rows) == public_classes(processes) - {"SDE", "Level", "DiscreteSDE"}


def test_the_table_of_grids_is_complete() -> None:
    assert set(table("grids.md")) == public_classes(grids)
