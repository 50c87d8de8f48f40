"""The command line: words become objects, nothing is executed, output is where it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import scoregen as sg
from scoregen.cli import COMMANDS, main, specs


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
    with pytest.raises(ValueError, match=r"did you mean DDIM\? Known: .*Ancestral.*VelocityAB\.$"):
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


def test_one_image_can_be_overfitted(tmp_path) -> None:
    from PIL import Image

    (tmp_path / "one").mkdir()
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "one" / "a.png")
    command = ["train", "--source", str(tmp_path / "one"), "--out", str(tmp_path / "m")]
    assert main([*command, "--mode", "L", "--steps", "1", "--network", "UNet(width=8)"]) == 0
    assert sg.training.card(tmp_path / "m" / "model")["event"] == [1, 8, 8]


def test_samples_of_standardised_data_are_in_the_datas_units(tmp_path) -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "far.npy", (x * torch.tensor([3.0, 0.5]) + torch.tensor([900.0, -40.0])))
    command = ["train", "--source", str(tmp_path / "far.npy"), "--out", str(tmp_path / "m")]
    network = ["--network", "MLP(hidden=8, depth=1)", "--steps", "3", "--batch", "32"]
    assert main([*command, *network, "--standardise"]) == 0
    units = sg.training.card(tmp_path / "m" / "model")["units"]
    assert units["mean"] == pytest.approx([900.0, -40.0], abs=1.0)
    assert units["std"] == pytest.approx([3.0, 0.5], rel=0.2)
    sample = ["sample", "--checkpoint", str(tmp_path / "m" / "model"), "--count", "32"]
    grid = ["--sampler", "DDIM@UniformLam(4)"]
    assert main([*sample, *grid, "--out", str(tmp_path / "s")]) == 0
    got = np.load(tmp_path / "s" / "samples.npy")
    model = sg.training.load(tmp_path / "m" / "model")
    plain = sg.Sampler(sg.DDIM(), sg.UniformLam(4)).sample(model, (32, 2), seed=0).numpy()
    want = plain * np.array(units["std"]) + np.array(units["mean"])
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.slow
def test_nothing_is_redrawn_into_a_pipe(tmp_path) -> None:
    root = Path(__file__).resolve().parents[1]
    train = ["train", "--source", "moons", "--steps", "30", "--network", "MLP(hidden=8)"]
    done = subprocess.run(
        [sys.executable, "-m", "scoregen", *train, "--out", str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "\r" not in done.stderr + done.stdout
    assert "loss" in done.stdout


def test_only_what_can_go_on_promises_to(tmp_path, monkeypatch, capsys) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    for name, said in (("sample", "nothing was kept"), ("train", "goes on from here")):
        monkeypatch.setitem(COMMANDS, name, lambda: interrupted())
        assert main([name]) == 130
        assert said in capsys.readouterr().err


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
        (["train", "--out", "x", "--source", "mons"], "did you mean moons"),
        (["train", "--out", "/dev/null/x", "--source", "moons"], "cannot be written to"),
        (["train", "--out", "x", "--device", "cuda:77"], "there are: cpu"),
        (["train", "--out", "x", "--network", "MPL()"], "did you mean MLP"),
        (["sample", "--count", "0"], "--count must be at least 1"),
        (["sample", "--out", "/dev/null/x"], "cannot be written to"),
        (["sample", "--device", "tpu9"], "--device tpu9 cannot be used here"),
        (["sample", "--sampler", "ProbabilityFlow(HEUNN)@Karras(5)"], "did you mean HEUN"),
        (["compare", "--out", "/dev/null/x"], "cannot be written to"),
        (["compare", "--sampler", "DDIM@Karras(5)", "DDIM@Karras(6)"], "one name"),
    ],
)
def test_bad_input_is_one_clear_line(command, message, capsys) -> None:
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("scoregen: ")
    assert error.count("\n") == 1


def without(monkeypatch, *packages) -> None:
    """An installation that lacks these packages."""
    for package in packages:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)


def test_commands_do_without_pictures_on_a_base_install(tmp_path, monkeypatch, capsys) -> None:
    without(monkeypatch, "matplotlib", "jinja2")
    sampler = ["--sampler", "DDIM@UniformLam(2)"]
    for name, command, left in (
        ("sample", ["sample", *sampler, "--count", "2"], {"samples.npy"}),
        (
            "compare",
            ["compare", *sampler, "--steps", "2", "--samples", "30", "--metric", "MMD"],
            {"cells", "results.csv", "results.json", "table.md"},
        ),
        ("analyse", ["analyse", "DDIM@UniformLam(2)", "--steps", "2", "4"], {"analysis.md"}),
    ):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
        assert {p.name for p in (tmp_path / name).iterdir()} == left
        said = capsys.readouterr()
        assert "without matplotlib" in said.err
        assert ".png" not in said.out
    assert main(["report", str(tmp_path / "compare")]) == 2
    assert "needs jinja2" in capsys.readouterr().err
    assert main(["versus", str(tmp_path / "compare"), "DDIM@UniformLam", "--budget", "2"]) == 0


@pytest.mark.parametrize(
    ("packages", "command", "message"),
    [
        (["sklearn"], ["compare"], "scikit-learn"),
        (["sklearn"], ["likelihood"], "scikit-learn"),
        (["sklearn"], ["train", "--out", "m"], "scikit-learn"),
        (["sklearn"], ["compare", "--source", "moons", "--metric", "C2ST"], "scikit-learn"),
        (["PIL"], ["compare", "--source", "pictures"], "pillow"),
        (["PIL"], ["train", "--out", "m", "--source", "pictures"], "pillow"),
    ],
)
def test_what_a_command_needs_is_checked_before_any_work(
    packages, command, message, tmp_path, monkeypatch, capsys
) -> None:
    def began(*arguments: object, **named: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(sg.ScoreNetwork, "predict", began)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    without(monkeypatch, *packages)
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_analysis_without_matplotlib_is_refused_first(tmp_path, monkeypatch) -> None:
    without(monkeypatch, "matplotlib")
    with pytest.raises(ImportError, match="matplotlib"):
        sg.analysis.analyse(
            {"d": sg.Sampler(sg.DDIM(), sg.UniformLam(2))}, sg.VPSDE(), (1.0,), out=tmp_path / "a"
        )


def test_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "SOLVER@GRID" in text
    assert "guidance" in text
