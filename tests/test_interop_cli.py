"""Networks of other libraries on the command line: info, sample, compare, likelihood."""

from __future__ import annotations

import gzip
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoregen.cli import main
from scoregen.cli.origins import is_origin, origin
from scoregen.interop import as_origin, from_edm

HOME = Path(__file__).parent / "data" / "origins"


@pytest.fixture(autouse=True)
def fresh() -> Any:
    """No network of another test is remembered; new ones are built from a copy of the generator."""
    origin.cache_clear()
    with torch.random.fork_rng():
        yield


def unpacked(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((HOME / f"{name}.gz").read_bytes()))
    return path


@pytest.mark.usefixtures("fresh")
def test_a_pickle_of_edm_is_shown_and_sampled(tmp_path: Path, capsys: Any) -> None:
    path = unpacked(tmp_path, "adm-edm.pkl")
    assert main(["info", "--from", f"edm:{path}"]) == 0
    assert "EDMPrecond of DhariwalUNet" in capsys.readouterr().out
    out = tmp_path / "drawn"
    words = ["sample", "--from", f"edm:{path}", "--count", "2", "--label", "1", "--seed", "3",
             "--sampler", "KarrasHeun@Karras(4)", "--out", str(out), "--device", "cpu"]  # fmt: skip
    assert main(words) == 0
    model, sampler = as_origin(from_edm(path).given(label=torch.tensor([1, 1])), 4)
    want = sampler.sample(model, (2, 3, 8, 8), seed=3)
    np.testing.assert_allclose(np.load(out / "samples.npy"), want.numpy(), rtol=1e-5, atol=1e-5)
    assert main([*words, "--guidance", "2"]) == 0  # its null class is known


def test_arguments_stand_in_brackets(tmp_path: Path, capsys: Any) -> None:
    path = unpacked(tmp_path, "improved.pt")
    given = "heads=2, new_attention_order=True, learned=False, steps=4000, schedule='cosine'"
    words = ["sample", "--from", f"guided-diffusion:{path}({given})", "--count", "1", "--sampler",
             "DDIM@Strided(3)", "--out", str(tmp_path / "a"), "--device", "cpu"]  # fmt: skip
    assert main(words) == 2
    assert "event=(3, 64, 64)" in capsys.readouterr().err
    words[2] = f"guided-diffusion:{path}({given}, event=(1, 8, 8))"
    assert main(words) == 0
    assert np.load(tmp_path / "a" / "samples.npy").shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "--from", "diffuser:x"], "did you mean diffusers"),
        (["sample", "--from", "score_sde:x.pth"], "in Python, not in a file"),
        (["info", "--from", "edm:absent.pkl"], "nothing is downloaded"),
        (["compare", "--from", "edm:absent.pkl"], "nothing is downloaded"),
        (["likelihood", "--from", "edm:absent.pkl"], "nothing is downloaded"),
        (["info", "--from", "edm:"], "names no place"),
        (["info", "--from", "edm:x.pkl(3)"], "need names"),
        (["info", "--from", "edm:x.pkl(classes=open('y'))"], "cannot read"),
        (["info", "--from", "edm:x.pkl(classes="], "cannot read"),
        (["sample", "--from", "guided-diffusion:absent.pt(head_channels=64)"], "no file"),
        (["sample", "--from", "edm:absent.pkl", "--count", "0"], "--count"),
    ],
)
def test_errors_before_work(words: list[str], message: str, capsys: Any) -> None:
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_likelihood_needs_data_of_the_networks_shape(tmp_path: Path, capsys: Any) -> None:
    path = unpacked(tmp_path, "adm-edm.pkl")
    assert main(["likelihood", "--from", f"edm:{path}", "--device", "cpu"]) == 2
    assert "samples of shape (3, 8, 8)" in capsys.readouterr().err


def test_folders_are_no_origins() -> None:
    assert not is_origin("runs/model")
    assert is_origin("diffusers:hub:owner/name")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_of_diffusers(tmp_path: Path, capsys: Any) -> None:
    """All four commands, against the same model imported in Python."""
    from test_interop_diffusers import tiny

    import scoregen as sg

    library: Any = importlib.import_module("diffusers")
    tiny().float().save_pretrained(tmp_path / "other" / "unet")
    folder = tmp_path / "pipe"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        grey = library.UNet2DModel(
            sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8, 16),
            layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    library.DDPMPipeline(grey, library.DDIMScheduler()).save_pretrained(folder)
    assert main(["info", "--from", f"diffusers:{folder}"]) == 0
    assert "UNet2DModel with DDIMScheduler" in capsys.readouterr().out
    drawn = ["--count", "2", "--seed", "1", "--sampler", "DPMSolverPP@Strided(5)"]
    words = ["--from", f"diffusers:{folder}", "--out", str(tmp_path / "s"), "--device", "cpu"]
    assert main(["sample", *words, *drawn]) == 0
    sampler = sg.Sampler(sg.DPMSolverPP(), sg.Strided(5))
    want = sampler.sample(sg.from_diffusers(folder), (2, 1, 4, 4), seed=1)
    np.testing.assert_allclose(np.load(tmp_path / "s" / "samples.npy"), want, rtol=1e-4, atol=1e-4)
    images = np.random.RandomState(0).randint(0, 256, (20, 1, 4, 4)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    words = ["--from", f"diffusers:{folder}", "--source", str(tmp_path / "images.npy"),
             "--device", "cpu"]  # fmt: skip
    spared = ["--steps", "4", "--samples", "16", "--metric", "SlicedWasserstein(16)"]
    compared = ["--sampler", "DDIM@UniformLam(4)", *spared, "--out", str(tmp_path / "c")]
    assert main(["compare", *words, *compared]) == 0
    assert "DDIM@UniformLam" in (tmp_path / "c" / "table.md").read_text()
    few = ["--count", "1", "--exact", "1", "--knots", "5", "--probes", "1"]
    assert main(["likelihood", *words, *few]) == 0
    assert "exact trace" in capsys.readouterr().out
    # a folder without its scheduler
    assert main(["info", "--from", f"diffusers:{tmp_path / 'other'}"]) == 2
    assert "scheduler_config.json" in capsys.readouterr().err


@pytest.mark.peers
def test_hub_names_download_by_explicit_use_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """owner/name is a folder; hub:owner/name is handed to the hub, and only then."""
    seen: list[tuple[str, str]] = []

    def download(name: str, file: str) -> str:
        seen.append((name, file))
        raise OSError("no network here")

    hub: Any = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="hub:owner/name"):
        origin("diffusers:google/ddpm-cifar10-32")
    assert seen == []
    assert main(["info", "--from", "diffusers:hub:google/ddpm-cifar10-32"]) == 2
    assert seen == [("google/ddpm-cifar10-32", "unet/config.json")]
