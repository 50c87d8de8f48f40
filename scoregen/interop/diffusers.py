"""U-Nets of diffusers with their scheduler's chain, prediction type and sampling defaults."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._checks import check_flag, check_path, shown
from ..models import EDM, X0, Eps, Index, LearnedVariance, LogSigma, RawTime, V, Velocity
from ..models.clocks import Clock
from ..models.parameterization import Parameterization
from ..processes import EDMSDE, SDE, DiscreteVPSDE, RectifiedSDE
from .card import Adapter, Card, Imported
from .schedulers import CHAINS, EDMS, FLOWS, KEYS, Printed

__all__ = ["from_diffusers"]

NETWORKS = ("UNet2DModel", "UNet2DConditionModel")
TEXT = (
    "encoder_hidden_states", "class_labels", "timestep_cond", "attention_mask",
    "cross_attention_kwargs", "added_cond_kwargs", "encoder_attention_mask",
    "down_block_additional_residuals", "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)  # fmt: skip
FORMS: dict[str, Parameterization] = {"epsilon": Eps(), "sample": X0(), "v_prediction": V()}


class _UNet(Adapter):
    """unet(x, timestep, **condition), its `.sample`; `sign` turns EDM's v-prediction into F."""

    def __init__(self, net: nn.Module, conditions: tuple[str, ...], required: bool, sign: float):
        super().__init__(net, conditions)
        self.required, self.sign = required, sign

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        if self.required and "encoder_hidden_states" not in condition:
            raise TypeError(
                "this network needs condition={'encoder_hidden_states': embeddings}, (batch, "
                "length, width), from its text encoder"
            )
        out: Tensor = self.net(x, clock, **condition, return_dict=False)[0]
        return out if self.sign == 1 else self.sign * out


def from_diffusers(
    source: str | Path | nn.Module, scheduler: Any = None, *, learned: bool | None = None
) -> Imported:
    """A `UNet2DModel` or `UNet2DConditionModel` of diffusers, with its scheduler.

    Args:
        source: a pipeline's folder (unet/ and scheduler/, or config.json and scheduler_config.json
            side by side), the network itself, or "hub:owner/name", which alone downloads. Weights
            are read by diffusers, from safetensors.
        scheduler: a diffusers scheduler; the folder's own unless given, and needed with a network.
        learned: whether twice the channels come out, the second half a learned variance; the
            scheduler's own variance_type unless given.

    Raises:
        FileNotFoundError: for a folder without the files.
        ImportError: without diffusers, where files are to be read.
        TypeError, ValueError: for a scheduler of an unknown class, a key of its config that no
            known class has, an unknown prediction type, output channels that do not fit.

    >>> from diffusers import DDIMScheduler, UNet2DModel  # doctest: +SKIP
    >>> model = from_diffusers(UNet2DModel(...), DDIMScheduler())  # doctest: +SKIP
    >>> print(model.card)  # doctest: +SKIP
    """
    if learned is not None:
        check_flag("learned", learned)
    net = source
    if isinstance(source, str | Path):
        net, scheduler = _load(source, scheduler)
    if scheduler is None:
        raise TypeError("a network needs its scheduler: from_diffusers(unet, scheduler)")
    check_config("scheduler", scheduler)
    if not isinstance(net, nn.Module) or not hasattr(net, "config"):
        raise TypeError(f"need a network of diffusers or its folder, got {type(net).__name__}")
    kind, config = type(scheduler).__name__, dict(scheduler.config)
    check_scheduler(kind, config)
    sde, slot, clock, times, sign = slots(kind, config, scheduler)
    unet: Any = net.config
    if _doubled(unet, kind, config, learned):
        slot = LearnedVariance(slot)
    conditional = "encoder_hid_dim" in dict(unet) or "cross_attention_dim" in dict(unet)
    classes = unet["num_class_embeds"] is not None or unet["class_embed_type"] is not None
    names = TEXT if conditional else ("class_labels",) if classes else ()
    size = unet["sample_size"]
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    card = Card(
        f"diffusers {type(net).__name__} with {kind}",
        (-1.0, 1.0),
        (unet["in_channels"], *sides) if sides else None,
        (
            *((("encoder_hidden_states", "its text encoder's for ''"),) if conditional else ()),
            *((("class_labels", "as trained; the config does not say"),) if classes else ()),
        ),
        times=times,
        sampling=", ".join(f"{k}={v}" for k, v in config.items() if _sampling(k, v)),
        dropped=_dropped(kind, config),
    )
    return Imported(
        _UNet(net, names, conditional, sign), sde, slot, clock, card, Printed(scheduler)
    )


def _load(source: str | Path, scheduler: Any) -> tuple[nn.Module, Any]:
    """Network and scheduler from a pipeline's folder, or from the hub."""
    text = str(check_path("source", source))
    library: Any = _diffusers()
    if text.startswith("hub:"):
        hub: Any = importlib.import_module("huggingface_hub")
        text = text.removeprefix("hub:")
        config = Path(hub.hf_hub_download(text, "unet/config.json"))
        path = Path(hub.hf_hub_download(text, "scheduler/scheduler_config.json"))
        where: dict[str, Any] = {"subfolder": "unet"}
    else:
        folder = Path(text)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no folder {folder}; to download a pipeline from the hub write hub:owner/name"
            )
        nested = (folder / "unet").is_dir()
        config = (folder / "unet" if nested else folder) / "config.json"
        path = (folder / "scheduler" if nested else folder) / "scheduler_config.json"
        text, where = str(config.parent), {"local_files_only": True}
    if scheduler is None:
        kind, stated = _stated(path, (*CHAINS, *FLOWS, *EDMS))
        check_scheduler(kind, stated)
        scheduler = getattr(library, kind).from_config(stated)
    network, _ = _stated(config, NETWORKS)
    net = getattr(library, network).from_pretrained(text, use_safetensors=True, **where)
    return net.eval(), scheduler


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError("reading a pipeline needs diffusers: pip install diffusers") from error


def _stated(path: Path, known: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The class that a config names, if it is known, and the config."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: need a pipeline's unet/ and scheduler/")
    stated: dict[str, Any] = json.loads(path.read_text())
    name = stated.get("_class_name")
    if name not in known:
        raise ValueError(f"{path} is of class {name!r}; known are {', '.join(known)}")
    return str(name), stated


def check_config(name: str, scheduler: object) -> None:
    """Refuse what is no scheduler: its numbers stand in its config."""
    if isinstance(scheduler, type) or not hasattr(scheduler, "config"):
        raise TypeError(
            f"{name} must be a scheduler of diffusers, such as DDIMScheduler(); got "
            f"{shown(scheduler)}"
        )


def check_scheduler(kind: str, config: Mapping[str, Any]) -> None:
    """Refuse what could change numbers without being understood."""
    if kind not in (*CHAINS, *FLOWS, *EDMS):
        raise ValueError(
            f"scheduler class {kind} is not known here; known are "
            f"{', '.join((*CHAINS, *FLOWS, *EDMS))}. Fill the slots by hand with ScoreNetwork"
        )
    unknown = [k for k, v in config.items() if k[0] != "_" and k not in KEYS and v]
    if unknown:
        stated = ", ".join(f"{k}={config[k]!r}" for k in unknown)
        raise ValueError(
            f"{kind} has settings that are not known here: {stated}; they may change numbers. "
            "Build the scheduler without them, or fill the slots by hand with ScoreNetwork"
        )


def slots(
    kind: str, config: Mapping[str, Any], scheduler: Any
) -> tuple[SDE, Parameterization, Clock, str, float]:
    """Process, parameterization, clock, its words for the card, and the sign of the output."""
    if kind in FLOWS or config.get("use_flow_sigmas"):
        count = float(config["num_train_timesteps"])
        if config.get("invert_sigmas"):
            raise ValueError(f"{kind} with invert_sigmas has data at the other end; from_velocity")
        form = config.get("prediction_type", "flow_prediction")
        if form != "flow_prediction":
            raise ValueError(f"{kind} with use_flow_sigmas needs flow_prediction, got {form!r}")
        shift = config.get("shift", config.get("flow_shift"))
        words = f"all of [0, {count:g}], on straight paths; sampled with shift {shift}"
        return RectifiedSDE(), Velocity(), RawTime(count), words, 1.0
    form = config["prediction_type"]
    if kind in EDMS:
        signs = {"epsilon": 1.0, "v_prediction": -1.0}
        if form not in signs:
            raise ValueError(f"prediction_type must be one of {', '.join(signs)}; got {form!r}")
        low, high = float(config["sigma_min"]), float(config["sigma_max"])
        words = f"sigma in [{low:g}, {high:g}], label log(sigma) / 4"
        slot = EDM(float(config["sigma_data"]))
        return EDMSDE(low, high), slot, LogSigma(0.25), words, signs[form]
    if form not in FORMS:
        raise ValueError(f"prediction_type must be one of {', '.join(FORMS)}; got {form!r}")
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"{kind} with timestep_type={config['timestep_type']!r} is not known here")
    sde = DiscreteVPSDE.from_alpha_bar(scheduler.alphas_cumprod.double().tolist())
    words = f"{sde.steps} knots, labels 0 to {sde.steps - 1}, between them interpolated"
    return sde, FORMS[form], Index(fractional=True), words, 1.0


def _doubled(unet: Any, kind: str, config: Mapping[str, Any], learned: bool | None) -> bool:
    """Whether a learned variance comes out; channels and statement must agree."""
    inner, outer = unet["in_channels"], unet["out_channels"]
    stated = config.get("variance_type") == "learned_range" if learned is None else learned
    if outer == (2 if stated else 1) * inner:
        return stated
    if outer == 2 * inner and learned is None:
        raise ValueError(
            f"the network returns {outer} channels for {inner}, and {kind} states no learned "
            "variance: give learned=True if the second half is one"
        )
    raise ValueError(
        f"the network returns {outer} channels for {inner} where {(2 if stated else 1) * inner} "
        f"are needed{' with a learned variance' if stated else ''}; inpainting networks and the "
        "like need an adapter of their own"
    )


def _sampling(key: str, value: Any) -> bool:
    training = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    return key[0] != "_" and key not in training and value not in (None, False)


def _dropped(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the scheduler would do unasked."""
    lines = []
    if config.get("clip_sample"):
        lines.append(
            f"x0 clipped to +-{config['clip_sample_range']:g}"
            + (" with eps left as predicted" if kind == "DDIMScheduler" else "")
            + ": wrap the model in Clamped(model)"
        )
    if config.get("thresholding"):
        lines.append("x0 thresholded: wrap the model in DynamicThreshold(model)")
    if config.get("timestep_spacing") == "leading":
        lines.append(
            f"a start below pure noise: Strided(n, 'leading', offset={config['steps_offset']}); "
            "'trailing' starts at the last knot"
        )
    if config.get("set_alpha_to_one") is False:
        lines.append("an end at the first knot (set_alpha_to_one=False): grids end at 0")
    if config.get("use_karras_sigmas"):
        lines.append("Karras' grid with rounded times: Karras(n)")
    if config.get("shift", 1) != 1 or config.get("flow_shift", 1) != 1:
        shift = config.get("shift", config.get("flow_shift"))
        lines.append(f"shifted times: Shifted(UniformTime(n), {shift:g})")
    return tuple(lines)
