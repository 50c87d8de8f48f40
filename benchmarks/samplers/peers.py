"""Other libraries, loaded for comparison: parity tests and benchmarks only.

Install them with `make test-peers` (or `pip install diffusers torchsde` and, without their
dependencies, `pip install --no-deps k-diffusion azula`).
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


def k_diffusion_sampling() -> Any:
    """k-diffusion's `sampling.py` alone: its package imports torchvision, this file does not.

    Raises:
        ModuleNotFoundError: if k-diffusion or torchsde is not installed.
    """
    name = "scoregen_peers_k_diffusion"
    if f"{name}.sampling" in sys.modules:
        return sys.modules[f"{name}.sampling"]
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("k-diffusion is not installed: make test-peers")
    package = types.ModuleType(name)
    package.__path__ = []
    utils = types.ModuleType(f"{name}.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.dim())]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules[name] = package
    sys.modules[f"{name}.utils"] = utils
    path = Path(next(iter(found.submodule_search_locations))) / "sampling.py"
    spec = importlib.util.spec_from_file_location(f"{name}.sampling", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"cannot read {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"{name}.sampling"] = module
    spec.loader.exec_module(module)
    return module


def versions() -> dict[str, str]:
    """Installed versions of the libraries compared with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "diffusers", "k-diffusion", "azula", "torchdiffeq", "torchsde"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
