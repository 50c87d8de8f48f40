"""Checkpoints: what comes back is what was saved, and everything else is refused with a reason."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import scoregen
from scoregen import (
    EDM,
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    X0,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    Eps,
    Gaussian,
    HalfLogSNR,
    Index,
    LogSigma,
    RawTime,
    RectifiedSDE,
    Score,
    ScoreNetwork,
    SubVPSDE,
    UNet,
    V,
    Velocity,
)
from scoregen._files import CheckpointError, probe, sweep, temporary, write
from scoregen.energies import EnergyNetwork, Potential, ReconstructionEnergy, energy_of
from scoregen.models import LearnedVariance, Prediction, ScoreModel
from scoregen.training import card, digits_model, fingerprint, load, reconstruct, save

pytestmark = pytest.mark.usefixtures("own_generator")


def awake(net: nn.Module) -> nn.Module:
    """The net with every parameter random, so that no zero initialisation hides a branch."""
    generator = torch.Generator().manual_seed(3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return net


def small() -> ScoreNetwork:
    return ScoreNetwork(awake(MLP((2,), 8, 1, classes=3)), VPSDE(0.2, 12.5), V(), HalfLogSNR(0.5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(small(), tmp_path / "model", steps=7, data_range=(-1.0, 1.0), bins=17, event=(2,))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a card and seal it again: SHA-256 of the rest, keys sorted."""
    text = json.loads((folder / "card.json").read_text())
    change(text)
    text.pop("sha256")
    seal = hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()
    (folder / "card.json").write_text(json.dumps(text | {"sha256": seal}))


def reseal(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Other weights, with a card that vouches for them."""
    content = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(folder, lambda text: text["weights"].update(seal))


MODELS: dict[str, Callable[[], ScoreNetwork]] = {
    "mlp": small,
    "unet": lambda: ScoreNetwork(awake(UNet(1, 8, classes=4)), CosineVPSDE(), X0(), LogSigma()),
    "chain": lambda: ScoreNetwork(MLP((2,), 8), DiscreteVPSDE.cosine(7), Eps(), Index(True)),
    "levels": lambda: ScoreNetwork(MLP((2,), 8), DiscreteVESDE.geometric(5), Score(), RawTime(1e3)),
    "edm": lambda: ScoreNetwork(MLP((2,), 8), EDMSDE(), EDM(0.7), LogSigma(0.25)),
    "flow": lambda: ScoreNetwork(MLP((), 8), RectifiedSDE(), Velocity(), RawTime()),
    "ve": lambda: ScoreNetwork(MLP((2,), 8).double(), VESDE(), Score()),
    "nested": lambda: ScoreNetwork(
        MLP((3,), 8, outputs=2), SubVPSDE(t_min=1e-4), LearnedVariance(EDM(0.3))
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_back_is_what_was_saved(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    back = load(save(model, tmp_path / "model"))
    assert back.sde == model.sde
    assert back.parameterization == model.parameterization
    assert back.clock == model.clock
    assert type(back.net) is type(model.net)
    assert back.net.config == model.net.config
    assert not back.training
    assert fingerprint(back) == fingerprint(model)
    for (key, a), (_, b) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
        assert a.dtype == b.dtype
    assert all(p.requires_grad for p in back.parameters())
    event = {"unet": (1, 5, 5), "flow": (), "nested": (3,)}.get(name, (2,))
    x = torch.linspace(-1, 1, 2 * max(1, int(torch.Size(event).numel()))).reshape(2, *event)
    time = model.sde.t_max * 0.6 if name not in ("chain", "levels") else model.sde.knots[2]
    with torch.no_grad():
        assert torch.equal(model.eval()(x, time).x0, back(x, time).x0)


def test_the_card_says_what_is_known(folder: Path) -> None:
    text = card(folder)
    assert text["scoregen"] == scoregen.__version__
    assert text["sde"]["args"]["beta_max"] == 12.5
    assert (text["data_range"], text["bins"], text["event"], text["steps"]) == ([-1, 1], 17, [2], 7)
    assert text["weights"]["set"] == "raw"
    assert text["weights"]["parameters"] == sum(p.numel() for p in small().parameters())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert text["weights"]["sha256"] == digest
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


def test_a_card_of_version_0_1_still_loads(tmp_path: Path) -> None:
    """Format 1, with the name a clock had then."""
    model = ScoreNetwork(MLP((), 8), RectifiedSDE(), Velocity(), RawTime(2.0))
    save(model, tmp_path / "model")
    path = tmp_path / "model" / "card.json"
    text = json.loads(path.read_text())
    assert text["clock"]["class"] == "RawTime"
    text["clock"]["class"] = "Raw"
    text.update(format=1, scoregen="0.1.0")
    for new in ("model", "units", "sha256"):
        del text[new]
    path.write_text(json.dumps(text))
    assert load(tmp_path / "model").clock == RawTime(2.0)
    assert card(tmp_path / "model")["units"] is None


@pytest.mark.slow
def test_loading_leaves_the_saved_model_alone_and_draws_nothing(folder: Path) -> None:
    state = torch.get_rng_state()
    model = load(folder)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert not torch.equal(next(load(folder).parameters()), next(model.parameters()))


def test_nothing_is_overwritten_unasked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists already"):
        save(small(), folder)
    save(MODELS["edm"](), folder, overwrite=True)
    assert load(folder).sde == EDMSDE()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="no checkpoint, so it is not overwritten"):
        save(small(), precious, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "x"


def test_a_failed_write_keeps_the_earlier_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(load(folder))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(CheckpointError, match="full"):
        save(MODELS["edm"](), folder, overwrite=True)
    monkeypatch.undo()
    assert fingerprint(load(folder)) == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("breaks", [1, 2, 3])
def test_a_replacement_broken_off_anywhere_leaves_one_whole_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, breaks: int
) -> None:
    """The new weights, the card and the weights' final name: three renames, any the last."""
    old, new = fingerprint(load(folder)), fingerprint(MODELS["edm"]())
    replace, calls = os.replace, []

    def fails(a: Path, b: Path) -> None:
        calls.append(1)
        if len(calls) == breaks:
            raise KeyboardInterrupt
        replace(a, b)

    model = MODELS["edm"]()
    new = fingerprint(model.eval())
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(KeyboardInterrupt):
        save(model, folder, overwrite=True)
    monkeypatch.undo()
    assert fingerprint(load(folder)) == (new if breaks == 3 else old)
    third = small()
    save(third, folder, overwrite=True)
    assert fingerprint(load(folder)) == fingerprint(third)
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors"]


def test_parts_of_dead_processes_are_swept_and_others_stay(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    mine = temporary(tmp_path / "model").name
    host = mine.split(".")[2].split("-")[0]
    dead = f".model.{host}-{int(done.stdout)}-0.part"
    elsewhere = f".a.{'0' * 8 if host != '0' * 8 else '1' * 8}-{int(done.stdout)}-0.part"
    old = elsewhere.replace(".a.", ".b.")
    for name in (mine, dead, elsewhere, old, ".hidden", "data.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text("x")
    os.utime(tmp_path / old, (0, 0))
    assert sorted(p.name for p in sweep(tmp_path)) == sorted([dead, old])
    assert probe(tmp_path) == tmp_path
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {mine, elsewhere, ".hidden", "data.part"}


def test_write_says_how_much_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", b"first")
    monkeypatch.setattr(
        os, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(
        CheckpointError, match=r"No space left.*6 bytes are needed and \d+ are free"
    ):
        write(tmp_path / "a", b"second")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"first"


@pytest.mark.parametrize("file", ["card.json", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_files_are_refused(folder: Path, file: str, keep: int) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        load(folder)


def test_every_flipped_byte_of_the_weights_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for at in range(0, len(content), 97):
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError, match="SHA-256"):
            load(folder)


def test_missing_pieces_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load(folder)
    (folder / "card.json").unlink()
    with pytest.raises(CheckpointError, match=r"no card\.json"):
        load(folder)


def test_pickles_are_refused_without_being_opened(tmp_path: Path) -> None:
    fired = tmp_path / "fired"

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (fired,))

    torch.save(Bomb(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="can run code and are never read"):
        load(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="pickled files are never read"):
        load(tmp_path)
    sealed = save(small(), tmp_path / "model")
    content = (tmp_path / "model.pt").read_bytes()
    (sealed / "model.safetensors").write_bytes(content)
    seal = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(sealed, lambda text: text["weights"].update(seal))
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load(sealed)
    assert not fired.exists()


CARDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "foreign": (lambda c: c.update(kind="lora"), "not the card of a scoregen checkpoint"),
    "newer": (lambda c: c.update(format=3, scoregen="9.1"), r"format 3 .* scoregen '9.1'"),
    "no process": (lambda c: c.pop("sde"), "sde missing"),
    "no weights": (lambda c: c.pop("weights"), "weights missing"),
    "unknown class": (lambda c: c["sde"].update({"class": "HoSDE"}), r"'HoSDE'.*none of.*VPSDE"),
    "a function": (lambda c: c["sde"].update({"class": "digits"}), "none of"),
    "wrong family": (lambda c: c["sde"].update({"class": "UNet"}), "none of"),
    "a path": (lambda c: c["net"].update({"class": "os.system"}), "none of"),
    "not a class": (lambda c: c.update(clock="HalfLogSNR"), "must have a class and args"),
    "unknown argument": (lambda c: c["sde"]["args"].update(beta=1.0), r"unknown \['beta'\]"),
    "lost argument": (lambda c: c["sde"]["args"].pop("beta_min"), r"missing \['beta_min'\]"),
    "wrong type": (lambda c: c["sde"]["args"].update(beta_min="x"), "VPSDE cannot be built"),
    "wrong value": (lambda c: c["sde"]["args"].update(beta_min=-1), "VPSDE cannot be built"),
    "wrong net": (lambda c: c["net"]["args"].update(hidden="wide"), "MLP cannot be built"),
    "net argument": (lambda c: c["net"]["args"].update(colour=1), "MLP cannot be built"),
    "other width": (lambda c: c["net"]["args"].update(hidden=16), "of another shape"),
    "huge width": (lambda c: c["net"]["args"].update(hidden=10**6), "of another shape"),
    "other depth": (lambda c: c["net"]["args"].update(depth=2), r"missing \['layers.1"),
    "less depth": (lambda c: c["net"]["args"].update(depth=0), r"unexpected \['layers.0"),
}


@pytest.mark.parametrize("name", CARDS)
def test_bad_cards_are_refused_with_the_reason(folder: Path, name: str) -> None:
    change, reason = CARDS[name]
    edit(folder, change)
    with pytest.raises(CheckpointError, match=reason):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b'"card"', b"{'a': 1}"])
def test_foreign_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "card.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    bad = small()
    with torch.no_grad():
        bad.net.inlet.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"NaN or infinite weights in inlet\.weight"):
        save(bad, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    reseal(folder, bad.net.state_dict())
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load(folder)


def test_the_prefix_of_a_wrapper_is_taken_off(folder: Path) -> None:
    tensors = small().net.state_dict()
    reseal(folder, {f"module.{k}": v for k, v in tensors.items()})
    assert fingerprint(load(folder)) == fingerprint(small())


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_the_hubs_cache_of_links_is_read(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "ab12", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(("card.json", "model.safetensors")):
        os.rename(folder / name, blobs / str(number))
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    assert fingerprint(load(snapshot)) == fingerprint(small())
    (blobs / "1").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load(snapshot)


def test_folders_that_cannot_be_written_are_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for call in (probe, lambda p: save(small(), p / "model")):
        with pytest.raises(CheckpointError, match="cannot be written"):
            call(tmp_path / "file" / "deeper")
    assert probe(tmp_path / "new" / "deep").is_dir()
    assert list((tmp_path / "new" / "deep").iterdir()) == []


class Own(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return self.layer(x)


def test_a_network_of_ones_own_comes_back_through_net(tmp_path: Path) -> None:
    model = ScoreNetwork(Own(2), VPSDE(), Eps())
    folder = save(model, tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"'Own'.*load\(folder, net=\.\.\.\)"):
        load(folder)
    back = load(folder, net=Own(2))
    assert torch.equal(back.net.layer.weight, model.net.layer.weight)
    with pytest.raises(CheckpointError, match="of another shape"):
        load(folder, net=Own(3))


class MyVP(VPSDE):
    """A process of one's own."""


class Lone(ScoreModel):
    """A model of one's own, without any of the four slots."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.mean, self.sde = nn.Parameter(torch.full((2,), start)), VPSDE()

    def predict(self, x: Tensor, t: Any, **condition: Any) -> Any:
        return Prediction(self.sde, t, x, x0=self.mean.expand_as(x))


OWN: dict[str, Callable[[], ScoreModel]] = {
    "process": lambda: ScoreNetwork(awake(MLP((2,), 8)), MyVP(), Eps()),
    "clock": lambda: ScoreNetwork(awake(MLP((2,), 8)), VPSDE(), Eps(), lambda sde, t, x: x[:, 0]),
    "model": lambda: Lone(0.25),
    "potential": lambda: Potential(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))),
}


@pytest.mark.parametrize("name", OWN)
def test_models_with_parts_of_ones_own_come_back_through_model(name: str, tmp_path: Path) -> None:
    model = OWN[name]()
    folder = save(model, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"build the model yourself.*model=\.\.\.\)"):
        load(folder)
    other = OWN[name]()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    back = load(folder, model=other)
    assert back is other
    for key, value in model.state_dict().items():
        assert torch.equal(value, back.state_dict()[key])
    with pytest.raises(CheckpointError, match="they differ in"):
        load(folder, model=small())
    with pytest.raises(TypeError, match="not both"):
        load(folder, model=other, net=MLP())


def test_cards_hold_finite_values_of_jsons_types(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="JSON's types"):
        save(small(), tmp_path / "a", extra={"loss": float("nan")})
    with pytest.raises(ValueError, match="'ema', 'raw'"):
        save(small(), tmp_path / "a", weights="best")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 1.5}, "steps must be an integer"),
        ({"data_range": 1.0}, "data_range must be a sequence of real numbers"),
        ({"data_range": (1.0, -1.0)}, r"data_range must be \(low, high\) with low < high"),
        ({"bins": 1}, "bins must be at least 2"),
        ({"event": 2}, "event must be a sequence of integers, got 2"),
        ({"units": (0.0, 1.0)}, "units must be a Units"),
        ({"extra": torch.ones(2)}, "extra must be a dict"),
        ({"overwrite": None}, "overwrite must be True or False"),
    ],
)
def test_what_a_card_cannot_mean_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        save(small(), tmp_path / "a", **change)
    assert list(tmp_path.iterdir()) == []


def test_paths_and_devices_are_refused_in_words(folder: Path) -> None:
    for bad in (None, 3, b"model", torch.ones(2)):
        for call in (card, load, lambda f: save(small(), f), lambda f: reconstruct(f, 0.1)):
            with pytest.raises(TypeError, match=r"folder must be a path, a str or an os"):
                call(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"device gpu cannot be used here \(.*\); there are: cpu"):
        load(folder, device="gpu")
    with pytest.raises(TypeError, match="net must be a Module, such as"):
        load(folder, net=lambda x, t: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a score model, got the network Linear"):
        load(folder, model=nn.Linear(2, 2))  # type: ignore[arg-type]


def test_what_is_no_module_has_no_fingerprint() -> None:
    with pytest.raises(TypeError, match="model must be a Module, such as ScoreNetwork"):
        fingerprint("model")  # type: ignore[arg-type]


def test_an_energy_comes_back(tmp_path: Path) -> None:
    energy = EnergyNetwork(ReconstructionEnergy(awake(MLP((2,), 8, 1)), 0.3), VESDE(), LogSigma())
    back = load(save(energy, tmp_path / "a"))
    x = torch.ones(3, 2)
    assert isinstance(back, EnergyNetwork)
    assert (back.sde, back.clock, back.net.scale) == (energy.sde, energy.clock, 0.3)
    assert torch.equal(energy_of(back, x, 0.5), energy_of(energy, x, 0.5))
    own = EnergyNetwork(ReconstructionEnergy(Own(2)), VPSDE())
    folder = save(own, tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"load\(folder, net=\.\.\.\)"):
        load(folder)
    again = load(folder, net=ReconstructionEnergy(Own(2)))
    assert torch.equal(energy_of(again, x, 0.5), energy_of(own, x, 0.5))


@pytest.mark.slow
def test_a_compiled_network_is_a_plain_one(tmp_path: Path) -> None:
    model = small()
    x = torch.ones(3, 2)
    for compiled in (torch.compile(model.net, backend="eager"), deepcopy(model.net)):
        if compiled is not model.net and "_orig_mod" not in dict(compiled.named_children()):
            compiled.layers[0] = torch.compile(compiled.layers[0], backend="eager")
        wrapped = ScoreNetwork(compiled, model.sde, model.parameterization, model.clock)
        back = load(save(wrapped, tmp_path / "a", overwrite=True))
        assert torch.equal(back(x, 0.5).x0, model.eval()(x, 0.5).x0)
        filled = load(tmp_path / "a", net=torch.compile(small().net, backend="eager"))
        assert equal_weights(filled.net, model.net)


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_every_flipped_bit_of_the_card_is_found_or_harmless(folder: Path) -> None:
    path = folder / "card.json"
    content, before = path.read_bytes(), load(folder)
    accepted = 0
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(bytes(flipped))
        try:
            text = card(folder)
        except CheckpointError:
            continue
        accepted += 1  # white space, say
        path.write_bytes(content)
        assert text == card(folder)
    assert accepted < len(content) / 10
    path.write_bytes(content)
    assert fingerprint(load(folder)) == fingerprint(before)


@pytest.mark.slow
def test_loading_leaves_the_compiler_alone() -> None:
    script = (
        "import sys, scoregen as sg; before = 'torch._dynamo' in sys.modules;"
        "sg.training.digits_model(); sys.exit(not before and 'torch._dynamo' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, check=False)
    assert done.returncode == 0


def test_the_fingerprint_changes_with_anything_that_changes_samples() -> None:
    seen = {fingerprint(small())}
    assert fingerprint(small()) in seen
    for change in (
        lambda m: setattr(m, "sde", VPSDE()),
        lambda m: setattr(m, "parameterization", Eps()),
        lambda m: setattr(m, "clock", HalfLogSNR(0.25)),
        lambda m: m.net.inlet.weight.data[0, 0].add_(1e-6),
    ):
        model = small()
        change(model)
        assert fingerprint(model) not in seen
        seen.add(fingerprint(model))
    for variance in (1.0, 2.0):
        seen.add(fingerprint(Gaussian(VPSDE(), torch.zeros(2), variance)))
    assert len(seen) == 7
    assert fingerprint(small().eval()) == fingerprint(small())


def test_the_bundled_digits_network_is_what_it_says() -> None:
    model = digits_model()
    text = card(Path(scoregen.__file__).parent / "data" / "digits_v")
    assert (model.sde, model.parameterization, model.clock) == (VPSDE(), V(), HalfLogSNR())
    assert text["weights"]["set"] == "ema"
    assert text["weights"]["bytes"] < 2 * 2**20
    assert 0.2e6 < text["weights"]["parameters"] < 0.4e6
    assert (text["event"], text["data_range"], text["bins"]) == ([1, 8, 8], [-1, 1], 17)
    assert model.net.config["classes"] == 10


@pytest.mark.parametrize("name", ["digits_eps", "digits_x0"])
def test_the_networks_that_judge_the_samplers_load(name: str) -> None:
    """One card is older than an argument of its clock, whose meaning then is known."""
    folder = Path(__file__).parents[1] / "benchmarks" / "samplers" / "data" / name
    model, card = load(folder), json.loads((folder / "card.json").read_text())
    assert model.clock == (Index(fractional=True) if name == "digits_eps" else HalfLogSNR())
    assert ("scale" in card["clock"]["args"]) == (name != "digits_eps")
