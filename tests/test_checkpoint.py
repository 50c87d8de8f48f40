"""Checkpoints: what comes back is what was saved, and everything else is refused with a reason."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
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
    LearnedVariance,
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
from scoregen._files import CheckpointError, probe, write
from scoregen.training import card, digits_model, fingerprint, load, save


@pytest.fixture(autouse=True)
def _own_generator() -> Iterator[None]:
    """Networks draw their first weights from the global generator, here from a copy of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


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
    text = json.loads((folder / "card.json").read_text())
    change(text)
    (folder / "card.json").write_text(json.dumps(text))


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
    text = path.read_text()
    assert '"RawTime"' in text
    path.write_text(text.replace('"RawTime"', '"Raw"').replace(scoregen.__version__, "0.1.0"))
    assert load(tmp_path / "model").clock == RawTime(2.0)


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


def test_a_failed_rename_puts_the_earlier_checkpoint_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = fingerprint(load(folder)), os.rename
    calls: list[int] = []

    def second_fails(a: Path, b: Path) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise PermissionError(13, "no")
        rename(a, b)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="no"):
        save(MODELS["edm"](), folder, overwrite=True)
    monkeypatch.undo()
    assert fingerprint(load(folder)) == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


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
    "newer": (lambda c: c.update(format=2, scoregen="9.1"), r"format 2 .* scoregen '9.1'"),
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
def test_a_link_in_place_of_the_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "model.safetensors", tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="missing"):
        load(folder)


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


def test_configuration_of_ones_own_is_refused_when_saving(tmp_path: Path) -> None:
    class MyVP(VPSDE):
        pass

    with pytest.raises(CheckpointError, match="MyVP is no sde of scoregen"):
        save(ScoreNetwork(MLP(), MyVP(), Eps()), tmp_path / "a")
    with pytest.raises(CheckpointError, match="no clock"):
        save(ScoreNetwork(MLP(), VPSDE(), Eps(), lambda sde, t, x: x[:, 0]), tmp_path / "a")
    with pytest.raises(CheckpointError, match="JSON's types"):
        save(small(), tmp_path / "a", extra={"loss": float("nan")})
    with pytest.raises(ValueError, match="'ema', 'raw'"):
        save(small(), tmp_path / "a", weights="best")
    assert list(tmp_path.iterdir()) == []


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
