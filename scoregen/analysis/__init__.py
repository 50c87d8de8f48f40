"""Exact laws of samplers, their gain of a network's error, observed orders, truth on mixtures."""

from .amplification import Amplification, amplification
from .errors import ErrorRow, ErrorTable, analyse, gaussian_error, plot, table
from .law import OutputLaw, is_affine, output_law
from .orders import Order, PolynomialModel, ZigZag, last_move_defect, observed_order
from .probe import NotAffineError, gaussian_model
from .truth import ModeErrors, exact_flow, mode_errors, strong_error

__all__ = [
    "Amplification",
    "ErrorRow",
    "ErrorTable",
    "ModeErrors",
    "NotAffineError",
    "Order",
    "OutputLaw",
    "PolynomialModel",
    "ZigZag",
    "amplification",
    "analyse",
    "exact_flow",
    "gaussian_error",
    "gaussian_model",
    "is_affine",
    "last_move_defect",
    "mode_errors",
    "observed_order",
    "output_law",
    "plot",
    "strong_error",
    "table",
]
