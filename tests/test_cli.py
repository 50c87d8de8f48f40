"""The command line: words become objects, nothing is executed, output is where it says."""

from __future__ import annotations

import json

import numpy as np
import pytest

import scoregen as sg
from scoregen.cli import main, specs


@pytest.mark.parametrize(
    ("text", "family", "made"),
    [
        ("DDIM", "solver", sg.DDIM()),
        ("DDIM(eta=0.5)", "solver", sg.DDIM(eta=0.5)),
        ("ProbabilityFlow(HEUN)", "solver", sg.ProbabilityFlow(sg.solvers.HEUN)),
        ("Ancestral('large')", "solver", sg.Ancestral("large")),
        ("Times(1.0, 0.5, 0.0)", "grid", sg.Times(1.0, 0.5, 0.0)),
        ("Reversed(Karras(5))", "grid", sg.Reversed(sg.Karras(5))),
        ("KarrasHeun(churn=0.1, r_max=inf)", "solver", sg.KarrasHeun(churn=0.1)),
        ("DiscreteVPSDE.linear(10)", "process", sg.DiscreteVPSDE.linear(10)),
        ("EDM(0.5)", "parameterization", sg.EDM(0.5)),
        ("RawTime(scale=1000.0)", "clock", sg.RawTime(1000.0)),
    ],
)
def test_text_becomes_the_object(text, family, made) -> None:
    assert specs.parse(text, family) == made


@pytest.mark.parametrize("solver", [sg.DDIM(0.25), sg.KarrasHeun(churn=0.2), sg.DPMSolverPP()])
def test_what_prints_parses_back(solver) -> None:
    assert specs.parse(repr(solver), "solver") == solver


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "DDIM(eta=__import__('os'))",
        "DDIM.__init__()",
        "DDIM.__class__.__mro__",
        "(lambda: 1)()",
        "DDIM(*[1])",
        "DDIM(**{'eta': 1})",
        "[c for c in (1,)]",
        "DDIM(",
        "DDIM(eta=open('/etc/passwd'))",
    ],
)
def test_nothing_is_executed(text) -> None:
    with pytest.raises(ValueError, match=r"."):
        specs.parse(text, "solver")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"did you mean DDIM\?.*Ancestral"):
        specs.parse("DDIMM", "solver")


def test_a_name_of_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="no solver is called 'Karras'"):
        specs.parse("Karras(5)", "solver")


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="stepsize"):
        specs.parse("DDIM(stepsize=1)", "solver")


def test_samplers_are_named_or_name_themselves() -> None:
    name, sampler = specs.parse_sampler("ours=DDIM(eta=0.5)@Karras(20)")
    assert (name, sampler) == ("ours", sg.Sampler(sg.DDIM(0.5), sg.Karras(20)))
    with pytest.raises(ValueError, match="SOLVER@GRID"):
        specs.parse_sampler("DDIM")


def test_sample_leaves_what_it_says(tmp_path, capsys) -> None:
    out = tmp_path / "s"
    command = ["sample", "--count", "6", "--label", "7", "--guidance", "2.0", "--out", str(out)]
    assert main([*command, "--sampler", "DPMSolverPP@UniformLam(4)"]) == 0
    assert str(out / "samples.npy") in capsys.readouterr().out
    x = np.load(out / "samples.npy", allow_pickle=False)
    assert x.shape == (6, 1, 8, 8)
    assert np.isfinite(x).all()
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_compare_and_analyse_write_tables_and_plots(tmp_path) -> None:
    out = tmp_path / "c"
    command = ["compare", "--sampler", "DDIM@UniformLam(2)", "--steps", "2", "--samples", "40"]
    assert main([*command, "--metric", "SlicedWasserstein(8)", "--out", str(out)]) == 0
    assert {"table.md", "quality.png", "results.csv"} <= {p.name for p in out.iterdir()}
    out = tmp_path / "a"
    command = ["analyse", "DDIM@Karras(8)", "--steps", "4", "8", "--process", "EDMSDE"]
    assert main([*command, "--out", str(out)]) == 0
    assert any(p.suffix == ".png" for p in out.iterdir())


def test_train_writes_a_checkpoint_that_samples(tmp_path, capsys) -> None:
    out = tmp_path / "m"
    command = ["train", "--out", str(out), "--source", "moons", "--steps", "3", "--batch", "32"]
    assert main([*command, "--network", "MLP(hidden=16, depth=1)"]) == 0
    assert main(["info", "--checkpoint", str(out / "model")]) == 0
    assert "VPSDE" in capsys.readouterr().out
    assert main(["sample", "--checkpoint", str(out / "model"), "--out", str(tmp_path / "s")]) == 0
    assert np.load(tmp_path / "s" / "samples.npy").shape == (64, 2)


def test_info_prints_the_card(capsys) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    body = json.loads(text[: text.rindex("}") + 1])
    assert body["net"]["class"] == "UNet"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample", "--sampler", "DIMM@Karras(5)"], "did you mean"),
        (["sample", "--checkpoint", "/nowhere"], "nowhere"),
        (["sample", "--guidance", "2.0"], "needs a --label"),
        (["sample", "--label", "11"], "label"),
        (["train", "--out", "x", "--source", "nowhere.npy"], "no data at"),
        (["compare", "--sampler", "DDIM@Karras(5)", "DDIM@Karras(6)"], "one name"),
    ],
)
def test_bad_input_is_one_clear_line(command, message, capsys) -> None:
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "SOLVER@GRID" in text
    assert "guidance" in text
