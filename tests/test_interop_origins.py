"""EDM, EDM2, score_sde and guided-diffusion by recorded numbers: files, forward passes, samplers.

`data/origins` holds what their own programs wrote and computed, in float64.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import F64
from torch import Tensor, nn

from scoregen import Sampler
from scoregen.guidance import Clamped
from scoregen.interop import (
    Imported,
    as_origin,
    from_edm,
    from_guided_diffusion,
    from_score_sde,
    read_pickle,
)
from scoregen.networks import ADM, EDM2, NCSNpp
from scoregen.noise import ReplayNoise, SampleNoise

HOME = Path(__file__).parent / "data" / "origins"


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def recorded(name: str, case: str = "") -> dict[str, Tensor]:
    start = f"{case}/" if case else ""
    with np.load(HOME / f"{name}.npz", allow_pickle=False) as file:
        return {
            key.removeprefix(start): torch.from_numpy(np.asarray(file[key]))
            for key in file.files
            if key.startswith(start)
        }


def largest(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """file(name): the path of an unpacked file."""

    def unpack(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.decompress((HOME / f"{name}.gz").read_bytes()))
        return path

    return unpack


def quiet(make: Any, *args: Any, **kwargs: Any) -> Any:
    """What is made, its first weights from a copy of the global generator."""
    with torch.random.fork_rng():
        return make(*args, **kwargs)


def each_slow(cases: Any, fast: str) -> list[Any]:
    """The cases as parameters; all but one are run with the slow tests."""
    return [case if case == fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]


# EDM and EDM2

EDM_CASES = {
    "ddpmpp-vp": (NCSNpp, "vp", (0.002, 80.0)),
    "ncsnpp-ve": (NCSNpp, "ve", (0.02, 80.0)),
    "ncsnpp-skip-edm": (NCSNpp, "edm", (0.002, 80.0)),
    "adm-edm": (ADM, "edm", (0.002, 80.0)),
    "adm-iddpm": (ADM, "iddpm", None),
    "edm2": (EDM2, "edm", (0.002, 80.0)),
}


@pytest.mark.parametrize("case", EDM_CASES)
@torch.no_grad()
def test_edm_files_give_edms_own_numbers(file: Any, case: str) -> None:
    model: Imported = quiet(from_edm, file(f"{case}.pkl")).double()
    want = recorded("edm2") if case == "edm2" else recorded("edm", case)
    architecture, kind, span = EDM_CASES[case]
    inner: Any = model.net
    assert (type(inner.net.net), inner.net.kind) == (architecture, kind)
    assert not any(module.training for module in inner.modules())
    if span is not None:
        assert (model.sde.t_min, model.sde.t_max) == pytest.approx(span)
    condition = {"class_labels": want["labels"]} if "labels" in want else {}
    sigma, x = want["sigma"], want["x"]
    out = model(x * sigma.reshape(-1, 1, 1, 1), sigma, **condition).x0
    assert largest(out, want["denoised"]) < 1e-12
    out = model.net(0.7 * x, torch.full((2,), 0.7, dtype=F64))
    assert largest(out, want["unlabelled"]) < 1e-12
    if condition:  # whole numbers are the same labels
        labels = want["labels"].argmax(1)
        out = model(x * sigma.reshape(-1, 1, 1, 1), sigma, label=labels).x0
        assert largest(out, want["denoised"]) < 1e-12
        none = torch.full((2,), want["labels"].shape[1])
        out = model(0.7 * x, 0.7, label=none).x0
        assert largest(out, want["unlabelled"]) < 1e-12


@pytest.mark.parametrize("case", each_slow(EDM_CASES, "adm-edm"))
@torch.no_grad()
def test_heun_on_edm_files_is_edms_own(file: Any, case: str) -> None:
    model: Imported = quiet(from_edm, file(f"{case}.pkl")).double()
    want = recorded("edm2") if case == "edm2" else recorded("edm", case)
    condition = {"class_labels": want["labels"]} if "labels" in want else {}
    same, sampler = as_origin(model.given(**condition), 50)
    start = sampler.levels(model.sde)[0].sigma * want["x"]
    got = sampler.run(same, start, noise=SampleNoise(0))
    assert largest(got, want["heun50"]) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ddpmpp-vp", "ncsnpp-ve", "ncsnpp-skip-edm", "adm-edm"])
@torch.no_grad()
def test_in_edms_own_float32_to_its_rounding(file: Any, case: str) -> None:
    """As shipped: its networks in float32, its state in float64."""
    model, want = quiet(from_edm, file(f"{case}.pkl")), recorded("edm", case)
    condition = {"class_labels": want["labels"]} if "labels" in want else {}
    same, sampler = as_origin(model.given(**condition), 50)
    start = sampler.levels(model.sde)[0].sigma * want["x"]
    got = sampler.run(same, start, noise=SampleNoise(0))
    assert got.dtype == F64
    # theirs differs from its own float64 run by up to 1e-6 as well
    assert largest(got, want["heun50_float32"]) < 4e-6


def test_the_card_of_a_file(file: Any) -> None:
    shown = str(quiet(from_edm, file("ddpmpp-vp.pkl")).card)
    for part in ("VPPrecond of SongUNet", "3 x 8 x 8", "null: 3", "augmentation labels"):
        assert part in shown
    assert "log u(sigma)" in str(quiet(from_edm, file("edm2.pkl")).card)


def test_a_pickle_that_edm_wrote_is_data(file: Any) -> None:
    record = read_pickle(file("ddpmpp-vp.pkl"))["ema"]
    assert record.name == "VPPrecond"
    assert record.kwargs["channel_mult"] == [1, 2]
    body = record.state["_modules"]["model"]
    assert (body.name, body.state["label_dropout"]) == ("SongUNet", 0)
    assert body.tensors()["map_layer0.weight"].shape == (32, 8)
    half = read_pickle(file("edm2.pkl"))
    assert half["ema"].tensors()["unet.out_gain"].dtype == torch.float16
    assert half["encoder"].name == "StandardRGBEncoder"


class Changed:
    """A pickle with something else in it, through the module that reads it."""

    def __init__(self, patch: pytest.MonkeyPatch, content: Any) -> None:
        patch.setattr("scoregen.interop.edm_files.read_pickle", lambda path: content)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda r: r.kwargs.update(model_type="VisionUNet"), "class VisionUNet"),
        (lambda r: r.kwargs.update(tilt=3), "not known here: tilt"),
        (lambda r: r.kwargs.update(channel_mult=[1, 1]), r"does not fit NCSNpp: .* where"),
        (lambda r: r.kwargs.update(num_blocks=2), "it lacks"),
        (lambda r: r.kwargs.update(attn_resolutions=[]), "has no place"),
        (lambda r: r.kwargs.update(channel_mult_emb=2), "channel_mult_emb=2"),
        (lambda r: r.kwargs.pop("img_channels"), "img_channels are missing"),
        (lambda r: setattr(r, "args", (8,)), "without their names"),
        (lambda r: setattr(r, "name", "Generator"), "no network of EDM"),
        (
            lambda r: r.state["_modules"]["model"].tensors()["map_layer0.bias"].fill_(torch.nan),
            "not finite: inner.bias",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(
    file: Any, monkeypatch: pytest.MonkeyPatch, change: Any, word: str
) -> None:
    path = file("ddpmpp-vp.pkl")
    content = read_pickle(path)
    change(content["ema"])
    Changed(monkeypatch, content)
    with pytest.raises(ValueError, match=word):
        quiet(from_edm, path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for act in (
        lambda: from_edm(tmp_path / "absent.pkl"),
        lambda: from_edm("https://example.org/edm.pkl"),
        lambda: from_guided_diffusion(tmp_path / "absent.pt", head_channels=64),
        lambda: from_score_sde(
            song("vp"), "vp", centered=True, weights=tmp_path / "absent.pth", ema=True
        ),
    ):
        with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
            act()


def test_a_latent_networks_card_names_its_encoder(
    file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("edm2.pkl")
    content = read_pickle(path)
    content["encoder"].name = "StabilityVAEEncoder"
    Changed(monkeypatch, content)
    assert "StabilityVAEEncoder: the data are its latents" in str(quiet(from_edm, path).card)


# score_sde

SONG: dict[str, dict[str, Any]] = {
    "vp": {}, "subvp": {},
    "ve": {"embedding": "fourier", "encoder": "residual", "taps": (1, 3, 3, 1)},
    "ve-skip": {
        "channels": 1, "mults": (1, 1, 1), "attention": (True, False, False),
        "embedding": "fourier", "encoder": "skip", "decoder": "skip", "taps": (1, 3, 3, 1),
    },
}  # fmt: skip


def song(case: str, **more: Any) -> NCSNpp:
    small = {"width": 8, "mults": (1, 2), "blocks": 1, "attention": (False, True)}
    net: NCSNpp = quiet(NCSNpp, **{**small, **SONG[case], **more})
    return net


def imported_song(file: Any, case: str) -> tuple[Imported, str, Tensor]:
    """The model of a recorded case, its kind and the recorded input."""
    net, kind = song(case), "ve" if case[:2] == "ve" else case
    path = file(f"song-{'vp' if case == 'subvp' else case}.pth")
    model: Imported = from_score_sde(
        net, kind, centered=kind != "ve", weights=path, ema=True  # type: ignore[arg-type]
    ).double()  # fmt: skip
    return model, kind, noise(1, 2, net.channels, 8, 8)


@pytest.mark.parametrize("case", SONG)
@torch.no_grad()
def test_score_sde_files_give_its_own_numbers(file: Any, case: str) -> None:
    model, kind, x = imported_song(file, case)
    want = recorded("song", case)
    std = want["std"]
    t = std if kind == "ve" else torch.tensor([0.05, 0.6], dtype=F64)
    got = model(x * std.reshape(-1, 1, 1, 1), t).score
    assert largest(got, want["score"]) < 1e-12


@pytest.mark.parametrize("case", each_slow(SONG, "ve"))
@torch.no_grad()
def test_score_sdes_samplers_are_its_own(file: Any, case: str) -> None:
    model, kind, x = imported_song(file, case)
    same, sampler = as_origin(model, 50)
    assert sampler.solver.population == (kind == "ve")
    draws = ReplayNoise([noise(100 + i, *x.shape) for i in range(100)])
    got = sampler.run(same, model.sde.prior_std(model.sde.t_max) * x, noise=draws)
    assert largest(got, recorded("song", case)["sample"]) < 1e-12


def test_raw_weights_are_others_than_their_average(file: Any) -> None:
    path = file("song-vp.pth")
    x, t = noise(1, 2, 3, 8, 8).float(), 0.4
    raw, mean = (
        from_score_sde(song("vp"), "vp", centered=True, weights=path, ema=ema)
        for ema in (False, True)
    )
    stated = torch.load(path, weights_only=True)
    first = stated["model"]["module.all_modules.0.weight"]
    nets: list[Any] = [model.net.net.net for model in (raw, mean)]
    assert torch.equal(nets[0].inner.weight, first.float())
    assert torch.equal(nets[1].inner.weight, stated["ema"]["shadow_params"][0].float())
    with torch.no_grad():
        assert largest(raw(x, t).eps, mean(x, t).eps) > 1e-2


def test_the_average_goes_to_trained_parameters_of_a_network_of_ones_own(tmp_path: Path) -> None:
    """As score_sde saves it: DataParallel's names, and a list without what was not trained."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed = nn.Parameter(torch.zeros(2), requires_grad=False)
            self.scale = nn.Parameter(torch.ones(1))
            self.shift = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return x * self.scale + self.shift

    raw = {"module.fixed": torch.ones(2), "module.scale": torch.ones(1) * 2,
           "module.shift": torch.ones(1) * 3}  # fmt: skip
    ema = {"decay": 0.999, "num_updates": 5, "shadow_params": [torch.tensor([5.0]),
                                                                torch.tensor([7.0])]}  # fmt: skip
    path = tmp_path / "checkpoint_1.pth"
    torch.save({"model": raw, "ema": ema, "optimizer": {}, "step": 1}, path)
    for wrap in (lambda net: net, nn.DataParallel):
        net = wrap(Own())
        from_score_sde(net, "vp", centered=True, weights=path, ema=True)
        assert [float(v.sum()) for v in net.state_dict().values()] == [2.0, 5.0, 7.0]
    torch.save({"model": raw, "ema": ema | {"shadow_params": [torch.ones(1)]}}, path)
    with pytest.raises(ValueError, match="1 averaged weights for 2 trained"):
        from_score_sde(Own(), "vp", centered=True, weights=path, ema=True)
    torch.save({"model": raw, "ema": ema | {"shadow_params": [torch.ones(1), torch.ones(4)]}}, path)
    with pytest.raises(ValueError, match="in another order"):
        from_score_sde(Own(), "vp", centered=True, weights=path, ema=True)


def test_checkpoints_of_score_sde_are_checked(file: Any, tmp_path: Path) -> None:
    path = file("song-ve.pth")

    def load(net: Any, **more: Any) -> Any:
        return from_score_sde(net, "ve", centered=False, **more)

    with pytest.raises(ValueError, match=r"does not fit NCSNpp: .*lacks"):
        load(song("ve", blocks=2), weights=path, ema=True)
    with pytest.raises(ValueError, match="has no place"):
        load(song("ve", encoder="plain"), weights=path, ema=True)
    with pytest.raises(TypeError, match="belong together"):
        load(song("ve"), weights=path)
    with pytest.raises(TypeError, match="belong together"):
        load(song("ve"), ema=True)
    with pytest.raises(TypeError, match="a network to fill"):
        load(lambda x, t: x, weights=path, ema=True)
    torch.save({"weights": torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="no checkpoint of score_sde"):
        load(song("ve"), weights=tmp_path / "odd.pth", ema=True)
    torch.save({"model": torch.ones(1), "ema": quiet(nn.Linear, 1, 1)}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="never loaded"):
        load(song("ve"), weights=tmp_path / "code.pth", ema=True)
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated"):
        load(song("ve"), weights=tmp_path / "cut.pth", ema=True)


# guided-diffusion

GUIDED: dict[str, dict[str, Any]] = {
    "guided": {"head_channels": 4},
    "improved": {
        "heads": 2, "new_attention_order": True, "steps": 4000, "schedule": "cosine",
        "learned": False, "rescale_timesteps": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", GUIDED)
@torch.no_grad()
def test_guided_diffusion_files_give_its_own_numbers(file: Any, case: str) -> None:
    model: Imported = quiet(from_guided_diffusion, file(f"{case}.pt"), **GUIDED[case]).double()
    adapter: Any = model.net
    net = adapter.net.net
    assert isinstance(net, ADM)
    names = ("mults", "blocks", "attention", "classes", "modulation", "sizing", "out_channels")
    shown = {name: net.config[name] for name in names}
    assert shown == (
        {"mults": [1, 2], "blocks": 1, "attention": [False, True], "classes": 5,
         "modulation": "scale", "sizing": "block", "out_channels": 6}
        if case == "guided" else
        {"mults": [1, 2], "blocks": 1, "attention": [True, True], "classes": 0,
         "modulation": "add", "sizing": "conv", "out_channels": 1}
    )  # fmt: skip
    want, x = recorded("guided", case), noise(1, 2, net.channels, 8, 8)
    condition = {"y": torch.tensor([1, 3])} if case == "guided" else {}
    out = adapter.net(x, torch.tensor([3.0, 700.0], dtype=F64), **condition)
    assert largest(out, want["out"]) < 1e-12


@pytest.mark.parametrize("case", each_slow(GUIDED, "guided"))
@torch.no_grad()
def test_ddpm_on_files_of_guided_diffusion_is_its_own(file: Any, case: str) -> None:
    model: Imported = quiet(from_guided_diffusion, file(f"{case}.pt"), **GUIDED[case]).double()
    adapter: Any = model.net
    want, x = recorded("guided", case), noise(1, 2, adapter.net.net.channels, 8, 8)
    condition = {"y": torch.tensor([1, 3])} if case == "guided" else {}
    same, sampler = as_origin(model.given(**condition), 50)
    draws = [noise(100 + i, *x.shape) for i in range(50)]
    got = sampler.run(same, x, noise=ReplayNoise(draws))
    assert largest(got, want["sample"]) < 1e-10
    if case == "guided":
        return
    # without clipping an untrained network multiplies rounding 2e5-fold
    free = sampler.run(model.given(**condition), x, noise=ReplayNoise(draws))
    assert largest(free, want["free"]) < 1e-8


def test_files_of_guided_diffusion_are_checked(file: Any, tmp_path: Path) -> None:
    path = file("guided.pt")

    def load(source: Any = path, **more: Any) -> Any:
        return quiet(from_guided_diffusion, source, **{"head_channels": 4, **more})

    for heads in ({"head_channels": None}, {"heads": 2}):
        with pytest.raises(TypeError, match="one of the two"):
            load(**heads)
    with pytest.raises(ValueError, match="do not divide"):
        load(head_channels=None, heads=3)
    with pytest.raises(ValueError, match="learned=True"):
        load(learned=False)
    with pytest.raises(ValueError, match="5 classes"):
        load(class_cond=False)
    with pytest.raises(TypeError, match="those of a file"):
        from_guided_diffusion(lambda x, t: x, heads=2)
    assert load(class_cond=True).card.conditions == (("y", "none was trained"),)
    whole = torch.load(path, weights_only=True)
    state = {name: value for name, value in whole.items() if "output_blocks" not in name}
    torch.save(state, tmp_path / "classifier.pt")
    with pytest.raises(ValueError, match="a classifier has no score"):
        load(tmp_path / "classifier.pt")
    state = {name: value for name, value in whole.items() if "output_blocks.3" not in name}
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="it is no U-Net of guided-diffusion"):
        load(tmp_path / "cut.pt")
    torch.save({**whole, "extra.weight": torch.ones(1)}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match=r"extra\.weight in it has no place"):
        load(tmp_path / "more.pt")
    torch.save([torch.ones(1)], tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="no state dict"):
        load(tmp_path / "odd.pt")


@torch.no_grad()
def test_a_filled_network_takes_every_solver(file: Any) -> None:
    from scoregen import DPMSolverPP, UniformLam

    model = Clamped(quiet(from_guided_diffusion, file("guided.pt"), head_channels=4), -1.0, 1.0)
    out = Sampler(DPMSolverPP(2), UniformLam(6)).sample(
        model, (2, 3, 8, 8), seed=0, condition={"y": torch.tensor([0, 4])}
    )
    assert out.abs().max() <= 1
