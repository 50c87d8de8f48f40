"""Models made of models: guidance towards a condition, and edits of the denoised data.

With u the unconditional and c the conditional prediction, guidance takes u + scale (c - u): scale 0
is unconditional, 1 conditional, and beyond 1 extrapolates (the papers' (1 + w) c - w u has
scale = w + 1). It does not sample the tilted density p(x) p(y | x)^scale. For Gaussian data with
variance v_c given the class and v_u without, x0 from the noisiest level of the VE process:

    probability-flow ODE    v_c^scale v_u^(1 - scale)              (a geometric mean)
    reverse SDE             int_0^inf (v_c / (v_c + q))^(2 scale) ((v_u + q) / v_u)^(2 scale - 2) dq
    tilted density          1 / (scale / v_c + (1 - scale) / v_u)  (a harmonic mean)

Three different laws, equal only where v_c = v_u.
"""

from .blends import AutoGuidance, ClassifierFree
from .edits import Clamped, DynamicThreshold
from .gradients import Classifier, Reconstruction
from .switch import Switch

__all__ = [
    "AutoGuidance",
    "Clamped",
    "Classifier",
    "ClassifierFree",
    "DynamicThreshold",
    "Reconstruction",
    "Switch",
]
