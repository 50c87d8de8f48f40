"""A sample of `make fuzz`: bad arguments are refused in words, and never answered by NaN."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import benchmark

import scoregen as sg
from scoregen import _checks


@pytest.mark.skipif(not hasattr(__import__("signal"), "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize(
    ("package", "every"),
    [
        ("processes.", 3),
        ("grids.", 5),
        ("densities.", 5),
        ("objectives.", 5),
        ("energies.", 7),
        ("mcmc.", 13),
        ("likelihood.", 11),
        ("analysis.", 9),
        ("metrics.", 7),
        ("tuning.", 6),
        ("interop.", 5),
        ("comparison.", 8),
        ("solvers.", 11),
        ("flowmaps.", 11),
        ("latent.", 1),
        ("baselines.", 9),
        ("data.", 7),
        ("training.", 7),
    ],
)
def test_bad_arguments_are_refused_in_words(package: str, every: int) -> None:
    outcomes, skipped = benchmark("checks/fuzz").fuzz(package, every)
    tally = Counter(outcome.kind for outcome in outcomes)
    assert not skipped
    assert len(outcomes) > 100
    assert [o for o in outcomes if o.kind in ("silent", "hang")] == []
    assert tally["obscure"] <= 0.02 * len(outcomes)
    assert min(tally["finite"], tally["refused"]) > 0


def test_the_fuzz_separates_nan_from_an_error_of_python() -> None:
    fuzz = benchmark("checks/fuzz")

    def careless(x: float) -> float:
        return x.real * 2

    assert fuzz.attempt(careless, {"x": math.nan})[0] == "nonfinite"
    assert fuzz.attempt(careless, {"x": None})[0] == "obscure"
    assert fuzz.attempt(careless, {"x": 1.0})[0] == "finite"
    assert fuzz.attempt(sg.VPSDE, {"t_max": math.nan})[0] == "refused"


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3)], ids=repr)
def test_whole_numbers_of_every_library_are_counts(value: object) -> None:
    count = _checks.check_count("n", value)
    assert (count, type(count)) == (3, int)


@pytest.mark.parametrize(
    "value",
    [
        True, np.True_, torch.tensor(True), 3.0, torch.tensor(3.0), "3", None, 3j,
        torch.tensor([3]), torch.ones(2, 2), np.array([3]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_count_is_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match="n must be an integer, got"):
        _checks.check_count("n", value)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)], ids=repr
)
def test_real_numbers_of_every_library_are_numbers(value: object) -> None:
    number = _checks.check_number("h", value, 0.0, 1.0)
    assert (number, type(number)) == (0.5, float)


@pytest.mark.parametrize(
    "value",
    [
        True, torch.tensor(True), "0.5", None, 0.5j, np.complex64(0.5), torch.tensor(0.5j),
        torch.tensor([0.5]), torch.ones(2, 2), np.array([0.5]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_number_is_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match="h must be a real number, got"):
        _checks.check_number("h", value)


def test_nan_and_numbers_beyond_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="h must be finite, got nan"):
        _checks.check_number("h", math.nan)
    with pytest.raises(ValueError, match=r"h must lie in \[0, 1\), got nan"):
        _checks.check_number("h", math.nan, 0.0, 1.0, open_high=True)
    with pytest.raises(ValueError, match="h must fit into a float"):
        _checks.check_number("h", 10**400)


def test_sequences_are_checked_entry_by_entry() -> None:
    assert _checks.check_numbers("b", torch.tensor([0.5, 0.25])) == (0.5, 0.25)
    assert _checks.check_counts("b", np.array([1, 2])) == (1, 2)
    with pytest.raises(TypeError, match=r"b\[1\] must be a real number, got 'x'"):
        _checks.check_numbers("b", [1.0, "x"])
    for bad in (1.0, "text", torch.ones(2, 2), None, {1: 2}):
        with pytest.raises(TypeError, match="b must be a sequence of real numbers, got"):
            _checks.check_numbers("b", bad)


@pytest.mark.parametrize("value", ["a/b", Path("a/b")], ids=repr)
def test_paths_are_text_or_paths(value: object) -> None:
    assert _checks.check_path("out", value) == Path("a/b")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "out must be a path, a str or an os.PathLike, got None"),
        (3, "out must be a path, a str or an os.PathLike, got 3"),
        (b"a", "out must be a path, a str or an os.PathLike, got b'a'"),
        ("", "out must be a path, got an empty string"),
        ("a\0b", "out must be a path without null characters"),
    ],
    ids=repr,
)
def test_what_is_no_path_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        _checks.check_path("out", value)


@pytest.mark.parametrize("value", ["cpu", torch.device("cpu"), "meta"], ids=repr)
def test_devices_are_names_or_devices(value: str | torch.device) -> None:
    assert _checks.check_device("device", value) == torch.device(value)


@pytest.mark.parametrize("value", ["gpu", "cuda:99", "", -1], ids=repr)
def test_devices_that_are_not_here_are_refused_with_those_that_are(value: object) -> None:
    with pytest.raises(ValueError, match=r"device .*cannot be used here \(.+\); there are: cpu"):
        _checks.check_device("device", value)


@pytest.mark.parametrize("value", [None, 0.0, True, (), torch.tensor(0)], ids=repr)
def test_what_is_no_device_is_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match="device must be a device, such as 'cpu' or 'cuda:0', got"):
        _checks.check_device("device", value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sg.data.moons(1e3, 0), "n must be an integer, got 1000.0"),
        (lambda: sg.data.moons(9, None), "seed must be an integer, got None"),
        (lambda: sg.data.moons(9, 2**64), r"seed must lie in 0 .. 2\^64 - 1, got 184467"),
        (lambda: sg.data.load(None), "path must be a path, a str or an os.PathLike, got None"),
        (lambda: sg.data.from_levels([0, 1], 2), r"levels must be a torch.Tensor, got \[0, 1\]"),
        (lambda: sg.data.from_levels(torch.arange(2), math.nan), "bins must be an integer, got"),
        (lambda: sg.Data(torch.ones(2), range=1), "range must be a sequence of real numbers"),
        (lambda: sg.Data(torch.ones(2), name=3), "name must be a str, such as"),
        (lambda: sg.Data(torch.ones(2), units=(0.0, 1.0)), "units must be a Units, such as"),
    ],
)  # fmt: skip
def test_bad_data_are_refused_in_words(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_range_is_two_finite_numbers_in_order() -> None:
    assert _checks.check_range("range", (0, np.float32(1))) == (0.0, 1.0)
    assert _checks.check_range("range", torch.tensor([-1.0, 1.0])) == (-1.0, 1.0)
    for bad in ((1.0, 1.0), (1.0, 0.0), (0.0, math.inf), (math.nan, 1.0), (0.0, 1.0, 2.0), ()):
        with pytest.raises(ValueError, match="range"):
            _checks.check_range("range", bad)
    for kind in (None, 3, "01", (0.0, "1"), {0.0: 1.0}):
        with pytest.raises(TypeError, match="range"):
            _checks.check_range("range", kind)


def test_an_object_of_the_wrong_kind_is_refused_with_an_example() -> None:
    with pytest.raises(
        TypeError, match=r"solver must be a Solver, such as DDIM\(\); got the class"
    ):
        sg.Sampler(sg.DDIM, sg.UniformTime(3))
    with pytest.raises(TypeError, match="model must be a score model, got the network Identity"):
        sg.Sampler(sg.DDIM(), sg.UniformTime(3)).sample(torch.nn.Identity(), (3, 2))
    model = sg.Gaussian(sg.VPSDE(), torch.zeros(2), 1.0)
    with pytest.raises(TypeError, match=r"shape\[1\] must be an integer, got 2\.5"):
        sg.Sampler(sg.DDIM(), sg.UniformTime(3)).sample(model, (3, 2.5))


def test_a_study_a_fit_and_an_import_name_the_argument_before_they_work() -> None:
    model = sg.Gaussian(sg.VPSDE(), torch.zeros(2), 1.0)
    samplers = {"ddim": sg.Sampler(sg.DDIM(), sg.UniformTime(3))}
    given = {"metrics": [sg.metrics.MMD(1.0)], "reference": torch.ones(9, 2)}
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        sg.compare(model, samplers, steps=[2], threads=0, **given)
    with pytest.raises(TypeError, match=r"condition must map names to values, such as .*; got 3"):
        sg.tuning.tune(model, 3, condition=3)
    with pytest.raises(ValueError, match=r"data_range must be .* low < high, got \(1, 0\)"):
        sg.from_velocity(lambda x, u: x, data_range=(1.0, 0.0))


@pytest.mark.parametrize("t", [1e-4, torch.tensor(1e-4), torch.tensor([0.5, 1e-4])], ids=repr)
def test_no_network_is_evaluated_below_t_min(t: float | torch.Tensor) -> None:
    model = sg.ScoreNetwork(lambda x, clock: x, sg.VPSDE(), sg.Eps(), sg.RawTime())
    x = torch.ones(2, 2)
    with pytest.raises(
        ValueError, match=r"times must be 0 or at least t_min = 0\.001, got 0\.0001"
    ):
        model(x, t)
    assert model(x, 1e-3).eps.shape == model(x, 0.0).eps.shape == (2, 2)


def test_a_closed_form_is_exact_below_t_min_too() -> None:
    sde = sg.VPSDE()
    level = sde.level(1e-4)
    got = sg.Gaussian(sde, torch.zeros(1), 4.0)(torch.ones(1, 1), 1e-4).score
    assert float(got) == pytest.approx(-1 / (4 * level.alpha**2 + level.sigma**2), rel=1e-6)
