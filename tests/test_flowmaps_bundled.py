"""The bundled flow map, and flow maps on the command line and in comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import benchmark

import scoregen as sg
from scoregen import MLP, VPSDE, Sampler, V
from scoregen.cli import main, specs
from scoregen.flowmaps import ConsistencyModel, FlowMap, Jump, Renoise, digits_map
from scoregen.flowmaps.bundled import DIGITS_MAP
from scoregen.grids import SinhLam, UniformAngle
from scoregen.metrics import SlicedWasserstein, digits_classifier
from scoregen.solvers import AngularAB, EulerStart


def test_the_bundled_map_is_small_and_is_what_its_card_says() -> None:
    model = digits_map()
    assert type(model) is FlowMap
    assert model.sde == sg.digits_model().sde
    assert not model.training
    assert sum(p.stat().st_size for p in DIGITS_MAP.iterdir()) <= 2_000_000
    card = sg.training.card(DIGITS_MAP)
    assert card["event"] == [1, 8, 8]
    assert "train_flow_map.py" in card["extra"]["trained by"]


def test_one_evaluation_draws_the_digit_that_the_flow_draws() -> None:
    """Loose bounds for 100 samples; the slow test and the page have the figures of 3,000."""
    label = torch.arange(100) % 10
    shape, condition = (100, 1, 8, 8), {"label": label}
    exact = Sampler(EulerStart(AngularAB(2)), SinhLam(20))
    truth = exact.sample(sg.digits_model(), shape, seed=5, condition=condition)
    start = Sampler(sg.DDIM(), UniformAngle(1))
    ddim = start.sample(sg.digits_model(), shape, seed=5, condition=condition)
    far = float((ddim - truth).square().mean().sqrt())
    for moves, most in ((1, 0.14), (2, 0.12)):
        x = Sampler(Jump(), UniformAngle(moves)).sample(
            digits_map(), shape, seed=5, condition=condition
        )
        rms = float((x - truth).square().mean().sqrt())
        assert rms < most < far / 2
        assert float((digits_classifier()(x).argmax(1) == label).float().mean()) >= 0.95


@pytest.mark.slow
def test_the_bundled_map_keeps_its_figures() -> None:
    """Paired over three seeds of 1,000: Fréchet, distance to the exact flow, class accuracy.

    Measured: 0.030 and 0.034 beyond the flow's Fréchet distance, with intervals of 0.05 over three
    seeds, and RMS 0.077 and 0.075.
    """
    digits = benchmark("training/train_flow_map")
    for evaluations, excess, rms in ((1, 0.10, 0.11), (2, 0.05, 0.09)):
        samples = [
            digits.draw(digits_map(), digits.jumps(evaluations), seed) for seed in digits.SEEDS
        ]
        row = digits.measure("map", samples)
        assert float(row.excess.mean()) <= excess
        assert float(row.rms.mean()) <= rms
        assert float(row.accuracy.mean()) >= 0.98


@pytest.mark.slow
def test_one_evaluation_in_two_dimensions_is_near_fifty_of_the_flow() -> None:
    """Sliced W2 within 1.5 times of an equal network's probability flow, on four rings."""
    planes = benchmark("training/flow_map_2d")
    trained = planes.train("rings", 800, scratch=False)
    one = planes.distances(trained.distilled, planes.ONE, "rings").mean()
    fifty = planes.distances(trained.score, planes.FIFTY, "rings").mean()
    assert float(one) <= 1.5 * float(fifty)


def test_samplers_of_maps_are_written_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, sampler = specs.parse_sampler("one=Jump@UniformAngle(1)")
    assert (name, sampler) == ("one", Sampler(Jump(), UniformAngle(1)))
    assert specs.parse_sampler("Renoise()@UniformAngle(2)")[1].solver == Renoise()
    with torch.random.fork_rng():
        net = MLP(event=(2,), hidden=8, second_clock=True)
    folder = tmp_path / "map"
    sg.save(ConsistencyModel(net, VPSDE(), V()), folder, event=(2,))
    assert main(["info", "--checkpoint", str(folder)]) == 0
    assert '"model": "ConsistencyModel"' in capsys.readouterr().out
    out = tmp_path / "s"
    command = ["sample", "--checkpoint", str(folder), "--count", "5", "--out", str(out)]
    assert main(command) == 0  # one jump, where a score network has the recommended sampler
    first = np.load(out / "samples.npy", allow_pickle=False)
    assert first.shape == (5, 2)
    assert main([*command, "--sampler", "Jump@Times(1.0, 0.0)"]) == 0
    np.testing.assert_array_equal(first, np.load(out / "samples.npy", allow_pickle=False))
    assert main([*command, "--sampler", "DDIM@UniformLam(4)"]) == 2
    assert "t = 0 alone" in capsys.readouterr().err
    assert main(["sample", "--sampler", "Jump@UniformAngle(1)", "--out", str(out)]) == 2
    assert "knows no jumps" in capsys.readouterr().err


def test_the_bundled_map_has_a_name_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", "--checkpoint", "digits-map"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[: text.rindex("}") + 1])["model"] == "FlowMap"


@pytest.mark.slow
def test_maps_are_compared_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "c"
    command = ["compare", "--checkpoint", "digits-map", "--samples", "40", "--steps", "1", "2", "4"]
    samplers = ["--sampler", "Jump@UniformAngle(1)", "Renoise@UniformAngle(1)"]
    metric = ["--metric", "SlicedWasserstein(8)", "--out", str(out)]
    assert main([*command, *samplers, *metric]) == 0
    table = (out / "table.md").read_text()
    assert "| sampler | 1 | 2 | 4 |" in table
    assert "Jump@UniformAngle" in table


def test_a_comparison_has_rows_for_one_two_and_four_evaluations() -> None:
    """At one evaluation both solvers are one jump, so their cells are equal."""
    result = sg.compare(
        digits_map(),
        {
            "jump": Sampler(Jump(), UniformAngle(1)),
            "renoise": Sampler(Renoise(), UniformAngle(1)),
            "ddim": Sampler(sg.DDIM(), UniformAngle(1)),
        },
        steps=(1, 2, 4),
        metrics=[SlicedWasserstein(16)],
        reference=sg.digits("train"),
        samples=60,
        condition={"label": torch.arange(60) % 10},
    )
    value = {(row.sampler, row.steps): row.value for row in result.rows}
    assert value["jump", 1] == value["renoise", 1]
    assert value["jump", 1] < value["ddim", 1]
    assert value["jump", 2] != value["renoise", 2]
