"""Models of other libraries as models of this one, and solvers and energies for their programs.

In: `from_diffusers`, `from_edm`, `from_score_sde`, `from_guided_diffusion`, `from_k_diffusion`,
`from_azula`, `from_velocity`, `from_lucidrains`, `from_distribution`, `from_torchebm`; each model
carries a `card`, and `as_origin(model, steps)` gives the origin's own sampler; `read_pickle`
reads NVIDIA's files as data. Out:
`as_diffusers_scheduler`, `as_k_diffusion`, `as_azula`, `as_distribution`, `potential_fn` and
`logdensity_fn` (pyro's and blackjax's own words), `to_torchebm`.
"""

from ..data.pickles import Record, read_pickle
from .azula import ScheduleSDE, as_azula, from_azula
from .card import Card, Imported, as_origin
from .densities import as_distribution
from .densities import logdensity as logdensity_fn
from .densities import potential as potential_fn
from .diffusers import from_diffusers
from .diffusers_scheduler import as_diffusers_scheduler
from .distributions import from_distribution
from .edm import from_edm
from .guided import from_guided_diffusion
from .k_diffusion import as_k_diffusion, from_k_diffusion
from .lucidrains import from_lucidrains
from .score_sde import from_score_sde
from .torchebm import from_torchebm, to_torchebm
from .vae import DiffusersAutoEncoder, from_diffusers_vae
from .velocity import from_velocity

__all__ = [
    "DiffusersAutoEncoder",
    "Card",
    "Imported",
    "Record",
    "ScheduleSDE",
    "as_azula",
    "as_diffusers_scheduler",
    "as_distribution",
    "as_k_diffusion",
    "as_origin",
    "from_azula",
    "from_diffusers",
    "from_diffusers_vae",
    "from_distribution",
    "from_edm",
    "from_guided_diffusion",
    "from_k_diffusion",
    "from_lucidrains",
    "from_score_sde",
    "from_torchebm",
    "from_velocity",
    "logdensity_fn",
    "potential_fn",
    "read_pickle",
    "to_torchebm",
]
