"""diffusers' networks and schedulers: from stand-ins here, from the library itself under `peers`.

The stand-ins have diffusers' interface and none of its code; with them the slots and the refusals
are checked. The rest of the file runs diffusers' own schedulers and pipelines beside scoregen.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import F64, normal, tensor
from torch import Tensor, nn

import scoregen as sg
from scoregen import Gaussian, Sampler
from scoregen.interop import as_origin, from_diffusers
from scoregen.interop.schedulers import KEYS, KnownLabels, LastNoise, Strides
from scoregen.noise import ReplayNoise, SampleNoise

MEAN, VAR = 0.3, 0.25
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)


class Config(dict):
    """diffusers' FrozenDict, near enough."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class UNet2DModel(nn.Module):
    """Exact for the data N(MEAN, VAR), in any of diffusers' forms."""

    def __init__(self, form: str = "epsilon", out: int = 1, classes: int | None = None) -> None:
        super().__init__()
        self.form, self.labels = form, []
        self.config = Config(
            in_channels=1, out_channels=out, sample_size=4, num_class_embeds=classes,
            class_embed_type=None,
        )  # fmt: skip

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> Any:
        self.labels.append(timestep.tolist())
        bar = TABLE[timestep.round().long()].reshape(-1, 1, 1, 1)
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
        shift = 0.0 if class_labels is None else class_labels.double().reshape(-1, 1, 1, 1)
        mean = MEAN + shift
        x0 = mean + alpha * VAR / (bar * VAR + 1 - bar) * (sample - alpha * mean)
        eps = (sample - alpha * x0) / sigma
        forms = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}
        out = forms[self.form]
        if self.config.out_channels == 2:
            out = torch.cat([out, torch.zeros_like(out)], 1)
        return SimpleNamespace(sample=out) if return_dict else (out,)


def scheduler(kind: str, **config: Any) -> Any:
    """An object of the class `kind` with a chain and a config, as diffusers' schedulers are."""
    form = {} if kind.startswith("Flow") else {"prediction_type": "epsilon"}
    stated = Config({"num_train_timesteps": 1000, **form, **config})
    return type(kind, (), {"config": stated, "alphas_cumprod": TABLE})()


EVENT = (1, 4, 4)


def exact(sde: sg.SDE) -> Gaussian:
    return Gaussian(sde, torch.full(EVENT, MEAN, dtype=F64), torch.full(EVENT, VAR))


@pytest.mark.parametrize("form", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type(form: str) -> None:
    model = from_diffusers(UNet2DModel(form), scheduler("DDIMScheduler", prediction_type=form))
    x = normal(2, *EVENT)
    for t in (1.0, 0.5, 0.001):
        torch.testing.assert_close(model(x, t).x0, exact(model.sde)(x, t).x0, rtol=1e-8, atol=1e-8)
    assert model.card.event == EVENT


def test_the_label_is_the_index_and_between_knots_its_fraction() -> None:
    net = UNet2DModel()
    model = from_diffusers(net, scheduler("EulerDiscreteScheduler"))
    model(normal(1, *EVENT), 0.5)
    model(normal(1, *EVENT), 0.5004)
    assert net.labels == [[499.0], [pytest.approx(499.4)]]


def test_learned_variance_is_stated_and_checked() -> None:
    learned = scheduler("DDPMScheduler", variance_type="learned_range")
    x = normal(2, *EVENT)
    spread = from_diffusers(UNet2DModel(out=2), learned)(x, 0.5).spread
    assert float(spread.mean()) == 0.5
    plain = scheduler("DDIMScheduler")
    assert from_diffusers(UNet2DModel(out=2), plain, learned=True)(x, 0.5).spread is not None
    with pytest.raises(ValueError, match="learned=True"):
        from_diffusers(UNet2DModel(out=2), plain)
    with pytest.raises(ValueError, match="2 are needed"):
        from_diffusers(UNet2DModel(out=1), learned)
    with pytest.raises(ValueError, match="inpainting"):
        from_diffusers(UNet2DModel(out=3), plain)


def test_classes_and_texts_are_conditions() -> None:
    x, labels = normal(2, *EVENT), torch.tensor([1, 2])
    model = from_diffusers(UNet2DModel(classes=3), scheduler("DDIMScheduler"))
    got = model(x, 0.5, class_labels=labels).x0
    for k in (0, 1):
        want = Gaussian(model.sde, torch.full(EVENT, MEAN + k + 1, dtype=F64), VAR)(x, 0.5).x0
        torch.testing.assert_close(got[k], want[k], rtol=1e-8, atol=1e-8)
    assert [name for name, _ in model.card.conditions] == ["class_labels"]
    with pytest.raises(TypeError, match="none as condition"):
        from_diffusers(UNet2DModel(), scheduler("DDIMScheduler"))(x, 0.5, class_labels=labels)

    class UNet2DConditionModel(UNet2DModel):
        def __init__(self) -> None:
            super().__init__()
            self.config["cross_attention_dim"] = 8

        def forward(  # type: ignore[override]
            self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor,
            added_cond_kwargs: Any = None, return_dict: bool = True,
        ) -> Any:  # fmt: skip
            moved = encoder_hidden_states.mean((1, 2))
            if added_cond_kwargs is not None:
                moved = moved + added_cond_kwargs["time_ids"].sum(1)
            return super().forward(sample, timestep, moved, return_dict)

    text = torch.ones(2, 5, 8, dtype=F64)
    model = from_diffusers(UNet2DConditionModel(), scheduler("DDIMScheduler"))
    nested = {"time_ids": torch.ones(2, 2, dtype=F64)}
    got = model(x, 0.5, encoder_hidden_states=text, added_cond_kwargs=nested).x0
    want = Gaussian(model.sde, torch.full(EVENT, MEAN + 3, dtype=F64), VAR)(x, 0.5).x0
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    with pytest.raises(TypeError, match="text encoder"):
        model(x, 0.5)


def test_a_flow_scheduler_gives_straight_paths() -> None:
    class Flow(UNet2DModel):
        def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
            s = timestep.reshape(-1, 1, 1, 1) / 1000
            a = 1 - s
            x0 = MEAN + a * VAR / (a**2 * VAR + s**2) * (sample - a * MEAN)
            return ((sample - a * x0) / s - x0,)

    flow = scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0)
    model = from_diffusers(Flow(), flow)
    x = normal(2, *EVENT)
    torch.testing.assert_close(model(x, 0.3).x0, exact(model.sde)(x, 0.3).x0)
    assert "Shifted(UniformTime(n), 3)" in str(model.card)


@pytest.mark.parametrize("form", ["epsilon", "v_prediction"])
def test_edm_schedulers_precondition_once(form: str) -> None:
    class Inner(UNet2DModel):
        def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
            sigma = (4 * timestep).exp().reshape(-1, 1, 1, 1)
            root = (sigma**2 + 0.25).sqrt()
            x = sample * root  # undo c_in
            x0 = MEAN + VAR / (VAR + sigma**2) * (x - MEAN)
            out = (x0 - 0.25 / root**2 * x) / (sigma * 0.5 / root)
            return (out if form == "epsilon" else -out,)

    edm = scheduler(
        "EDMEulerScheduler", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, prediction_type=form
    )
    model = from_diffusers(Inner(), edm)
    x = normal(2, *EVENT)
    for t in (70.0, 0.5, 0.003):
        torch.testing.assert_close(model(x, t).x0, exact(model.sde)(x, t).x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("made", "error", "word"),
    [
        (lambda: (UNet2DModel(), scheduler("RePaintScheduler")), ValueError, "RePaintScheduler"),
        (lambda: (UNet2DModel(), scheduler("DDIMScheduler", tilt=2)), ValueError, "tilt=2"),
        (
            lambda: (UNet2DModel(), scheduler("DDIMScheduler", prediction_type="score")),
            ValueError,
            "'score'",
        ),
        (
            lambda: (
                UNet2DModel(),
                scheduler("EulerDiscreteScheduler", timestep_type="continuous"),
            ),
            ValueError,
            "continuous",
        ),
        (lambda: (UNet2DModel(), None), TypeError, "scheduler"),
        (lambda: (nn.Identity(), scheduler("DDIMScheduler")), TypeError, "Identity"),
    ],
)
def test_what_is_not_known_is_refused_by_name(made: Any, error: Any, word: str) -> None:
    with pytest.raises(error, match=word):
        from_diffusers(*made())


def test_a_setting_that_is_off_is_no_reason_to_refuse() -> None:
    from_diffusers(UNet2DModel(), scheduler("DDIMScheduler", tilt=None, lean=False))


def test_labels_of_a_list_belong_to_its_times() -> None:
    clock = KnownLabels((0.9, 0.4, 0.1), (899.5, 399.0, 99.0), whole=False)
    x = torch.zeros(2, 3)
    assert clock(None, sg.Level(0.4 + 1e-12, 1, 1, 0), x).tolist() == [399.0, 399.0]  # type: ignore[arg-type]
    assert clock(None, sg.Level(0.9, 1, 1, 0), x).tolist() == [899.5, 899.5]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"nearest time is 0\.4"):
        clock(None, sg.Level(0.5, 1, 1, 0), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one time for the batch"):
        clock(None, sg.Level(tensor(0.4), 1, 1, 0), x)  # type: ignore[arg-type]


def test_strides_and_last_noise_by_hand() -> None:
    sde = sg.DiscreteVPSDE.linear(100)
    model, x, z = Gaussian(sde, tensor(0.0, 0.0), VAR), normal(3, 2), normal(3, 2, seed=1)
    t, s, end = sde.level(0.9), sde.level(0.5), sde.level(0.7)
    moved, _ = Strides(sg.DDIM(), 0.2).step(model, x, t, s, None, SampleNoise(0))
    p = model(x, t)
    torch.testing.assert_close(moved, end.alpha * p.x0 + end.sigma * p.eps)
    last, _ = LastNoise("large").step(model, x, t, sde.level(0.0), None, ReplayNoise([z]))
    torch.testing.assert_close(last, p.x0 + t.sigma * z)
    with pytest.raises(ValueError, match="learned variance"):
        LastNoise("learned").step(model, x, t, sde.level(0.0), None, ReplayNoise([z]))


def test_a_missing_folder_downloads_nothing(tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, ImportError), match=r"hub:owner/name|pip install"):
        from_diffusers(tmp_path / "absent")


# The library itself


class Wide:
    """The module torch, with float64 where a library asks for float32."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class WideNumpy:
    """The module numpy, likewise."""

    import numpy

    float32 = numpy.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self.numpy, name)


MODULES = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler_discrete",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "HeunDiscreteScheduler": "heun_discrete",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "UniPCMultistepScheduler": "unipc_multistep",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler_discrete",
    "EDMEulerScheduler": "edm_euler",
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """made(kind, **config): one of diffusers' schedulers, in float64, its noise from DRAWS."""
    rest = iter(DRAWS)

    def make(kind: str, **config: Any) -> Any:
        home: Any = importlib.import_module(f"diffusers.schedulers.scheduling_{MODULES[kind]}")
        monkeypatch.setattr(home, "torch", Wide())
        monkeypatch.setattr(home, "np", WideNumpy(), raising=False)
        if hasattr(home, "randn_tensor"):
            monkeypatch.setattr(home, "randn_tensor", lambda *a, **b: next(rest))
        return getattr(home, kind)(**config)

    return make


SHAPE = (2, 3, 8, 8)
DRAWS = [normal(*SHAPE, seed=100 + i) for i in range(60)]


def tiny(out: int = 3, seed: int = 0, conditional: bool = False) -> Any:
    """A random U-Net of diffusers in float64."""
    library: Any = importlib.import_module("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if conditional:
            return (
                library.UNet2DConditionModel(
                    sample_size=8, in_channels=3, out_channels=out, block_out_channels=(8, 16),
                    layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
                    attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                ).double().eval()
            )  # fmt: skip
        return (
            library.UNet2DModel(
                sample_size=8, in_channels=3, out_channels=out, block_out_channels=(8, 16),
                layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            ).double().eval()
        )  # fmt: skip


@torch.no_grad()
def theirs(unet: Any, scheduler: Any, steps: int, **condition: Any) -> tuple[Tensor, Tensor]:
    """Their loop: the first state, as x = alpha x0 + sigma eps, and the sample."""
    scheduler.set_timesteps(steps)
    x = normal(*SHAPE, seed=1) * float(scheduler.init_noise_sigma)
    start = None
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        start = seen if start is None else start
        out = unet(seen, t, **condition).sample
        x = scheduler.step(out, t, x).prev_sample
    return start, x


def largest(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM, as shipped": ("DDIMScheduler", {}),
    "DDIM, trailing, no clip": (
        "DDIMScheduler",
        {"timestep_spacing": "trailing", "clip_sample": False},
    ),
    "DDIM, Stable Diffusion": (
        "DDIMScheduler",
        {
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False,
        },
    ),
    "DDIM, first alpha kept": ("DDIMScheduler", {"set_alpha_to_one": False}),
    "DDIM, linspace": ("DDIMScheduler", {"timestep_spacing": "linspace"}),
    "DDIM, thresholding": (
        "DDIMScheduler",
        {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9},
    ),
    "DDIM, v": ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    "DDIM, zero SNR, v": (
        "DDIMScheduler",
        {
            "rescale_betas_zero_snr": True, "prediction_type": "v_prediction",
            "timestep_spacing": "trailing", "clip_sample": False,
        },
    ),
    "DDIM, sample": ("DDIMScheduler", {"prediction_type": "sample", "clip_sample": False}),
    "DDPM, small": ("DDPMScheduler", {}),
    "DDPM, large": ("DDPMScheduler", {"variance_type": "fixed_large"}),
    "DDPM, large, trailing": (
        "DDPMScheduler",
        {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
    ),
    "DDPM, cosine": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler, leading": (
        "EulerDiscreteScheduler",
        {"timestep_spacing": "leading", "steps_offset": 1},
    ),
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler, zero SNR, v": (
        "EulerDiscreteScheduler",
        {
            "rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear",
            "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
    ),
    "Euler, sigma_min": ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min",
                                                   "timestep_spacing": "trailing"}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "Heun, clip": ("HeunDiscreteScheduler", {"clip_sample": True}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M, Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M, heun": ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM++ 2M, thresholding": ("DPMSolverMultistepScheduler", {"thresholding": True}),
    "SDE-DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC, Karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    "EDM Euler": ("EDMEulerScheduler", {}),
}  # fmt: skip


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [50, 7])
def test_parity_with_the_schedulers(made: Any, name: str, steps: int) -> None:
    kind, config = CASES[name]
    if kind == "DPMSolverMultistepScheduler" and config.get("solver_order") == 3 and steps < 15:
        with pytest.raises(ValueError, match="lowers the order"):
            as_origin(from_diffusers(tiny(), made(kind, **config)), steps)
        return
    unet, one = tiny(), made(kind, **config)
    start, want = theirs(unet, one, steps)
    model, sampler = as_origin(from_diffusers(unet, made(kind, **config)), steps)
    start = (
        start / model.parameterization.input_scale(None, model.sde.level(80.0))
        if (kind == "EDMEulerScheduler")
        else start
    )
    with torch.no_grad():
        got = sampler.run(model, start, noise=ReplayNoise(DRAWS))
    final = sampler.levels(model.sde)[-1]
    scaled = kind.startswith(("Euler", "Heun")) and final.sigma > 0
    assert largest(got / final.alpha if scaled else got, want) < 1e-6


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_parity_with_learned_variance(made: Any, spacing: str) -> None:
    config = {"variance_type": "learned_range", "timestep_spacing": spacing}
    unet = tiny(out=6)
    start, want = theirs(unet, made("DDPMScheduler", **config), 50)
    model, sampler = as_origin(from_diffusers(unet, made("DDPMScheduler", **config)), 50)
    with torch.no_grad():
        got = sampler.run(model, start, noise=ReplayNoise(DRAWS))
    assert largest(got, want) < 1e-6


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_parity_with_flow_matching(made: Any, shift: float) -> None:
    unet = tiny()
    kind = "FlowMatchEulerDiscreteScheduler"
    one = made(kind, shift=shift)
    one.set_timesteps(50)
    x = start = normal(*SHAPE, seed=1)
    with torch.no_grad():
        for t in one.timesteps:
            x = one.step(unet(x, t).sample, t, x).prev_sample
        model, sampler = as_origin(from_diffusers(unet, made(kind, shift=shift)), 50)
        got = sampler.run(model, start, noise=SampleNoise(0))
    assert largest(got, x) < 1e-6


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_parity_of_a_conditional_network(made: Any, kind: str) -> None:
    unet, text = tiny(conditional=True), normal(2, 5, 8, seed=3)
    start, want = theirs(unet, made(kind), 50, encoder_hidden_states=text)
    model, sampler = as_origin(from_diffusers(unet, made(kind)), 50)
    with torch.no_grad():
        bound = model.given(encoder_hidden_states=text)
        got = sampler.run(bound, start, noise=SampleNoise(0))
    assert largest(got, want) < 1e-6


CHAIN = ("alphas_cumprod", "alpha_t", "sigma_t", "lambda_t", "final_alpha_cumprod")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_as_shipped_the_schedulers_differ_by_their_own_rounding(made: Any, kind: str) -> None:
    """Float32 beside float64 of one scheduler on one table: the whole distance is theirs.

    Their table of alpha-bar is of float32 and taken over as it is; their coefficients, computed
    from it in float32, are off by 1e-7 each, which clipping and an untrained network multiply to
    3e-4 over 50 steps. In float64 on the same table they agree with ours to 1e-9.
    """
    library: Any = importlib.import_module("diffusers")
    unet, shipped = tiny(), getattr(library, kind)()
    wide = made(kind)  # from here on their module computes in float64
    for name in CHAIN:
        if hasattr(shipped, name):
            setattr(wide, name, torch.as_tensor(getattr(shipped, name)).double())
    if hasattr(wide, "alpha_t"):
        wide.alpha_t, wide.sigma_t = wide.alphas_cumprod.sqrt(), (1 - wide.alphas_cumprod).sqrt()
        wide.lambda_t = wide.alpha_t.log() - wide.sigma_t.log()
    start, want = theirs(unet, wide, 50)
    model, sampler = as_origin(from_diffusers(unet, wide), 50)
    with torch.no_grad():
        got = sampler.run(model, start, noise=SampleNoise(0))
    assert largest(got, want) < 1e-9


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_in_their_own_float32_the_schedulers_agree_to_its_rounding() -> None:
    """As printed: no float64 put in anywhere on their side; 3e-4 is DDIM's own (see above)."""
    library: Any = importlib.import_module("diffusers")
    unet = tiny()
    for kind, most in (
        ("DDIMScheduler", 4e-4),
        ("EulerDiscreteScheduler", 2e-6),
        ("DPMSolverMultistepScheduler", 2e-6),
    ):
        make = getattr(library, kind)
        start, want = theirs(unet, make(), 50)
        model, sampler = as_origin(from_diffusers(unet, make()), 50)
        with torch.no_grad():
            got = sampler.run(model, start, noise=SampleNoise(0))
        assert largest(got, want) < most, kind


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_every_setting_of_the_known_schedulers_is_known() -> None:
    import inspect

    from scoregen.interop.schedulers import CHAINS, EDMS, FLOWS

    library: Any = importlib.import_module("diffusers")
    for kind in (*CHAINS, *FLOWS, *EDMS):
        names = set(inspect.signature(getattr(library, kind).__init__).parameters) - {"self"}
        assert names <= KEYS, (kind, names - KEYS)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", [True, False])
def test_a_saved_pipeline_comes_back(tmp_path: Path, nested: bool) -> None:
    library: Any = importlib.import_module("diffusers")
    unet, one = tiny().float(), library.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    if nested:
        library.DDPMPipeline(unet, one).save_pretrained(tmp_path)
    else:
        unet.save_pretrained(tmp_path)
        one.save_pretrained(tmp_path)
    model, direct = from_diffusers(tmp_path), from_diffusers(unet, one)
    x = normal(*SHAPE).float()
    with torch.no_grad():
        torch.testing.assert_close(model(x, 0.5).x0, direct(x, 0.5).x0)
    assert str(model.card) == str(direct.card)
    config = tmp_path / ("scheduler" if nested else ".") / "scheduler_config.json"
    config.write_text(config.read_text().replace("DDPMScheduler", "os.system"))
    with pytest.raises(ValueError, match=r"os\.system"):
        from_diffusers(tmp_path)
    config.write_text(
        config.read_text().replace("os.system", "DDPMScheduler").replace("{", '{"tilt": 3,', 1)
    )
    with pytest.raises(ValueError, match="tilt=3"):
        from_diffusers(tmp_path)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json"):
        from_diffusers(tmp_path)
    with pytest.raises(FileNotFoundError, match="hub:owner/name"):
        from_diffusers(tmp_path / "absent")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_samples_from_the_imported_model_differ_from_nothing_but_the_seed() -> None:
    """Another solver on another grid runs on it: the whole point of importing it."""
    library: Any = importlib.import_module("diffusers")
    model = from_diffusers(tiny(), library.DDIMScheduler())
    out = Sampler(sg.DPMSolverPP(), sg.UniformLam(5)).sample(model, SHAPE, seed=0, dtype=F64)
    assert out.shape == SHAPE
