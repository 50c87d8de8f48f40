"""How likely data is under a model: density by the ODE, bits per dimension, the chain's bound."""

from .bound import Bound, bound, continuous_bound, importance_bound
from .decoders import Decoder, DiscretisedGaussian, GaussianDecoder
from .levels import bits_per_dim, dequantise
from .ode import LogProb, decode, encode, log_prob
from .report import BitsRow, bits_report, bits_table
from .terms import Variance
from .traces import Exact, Hutchinson

__all__ = [
    "BitsRow",
    "Bound",
    "Decoder",
    "DiscretisedGaussian",
    "Exact",
    "GaussianDecoder",
    "Hutchinson",
    "LogProb",
    "Variance",
    "bits_per_dim",
    "bits_report",
    "bits_table",
    "bound",
    "continuous_bound",
    "decode",
    "dequantise",
    "encode",
    "importance_bound",
    "log_prob",
]
