"""Importing the library: little more than importing torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEASURE = """
import sys, time
start = time.process_time()
import torch
middle = time.process_time()
import scoregen
end = time.process_time()
lazy = {"scipy", "torchdiffeq", "matplotlib", "sklearn", "PIL", "accelerate", "diffusers"}
print((end - start) / (middle - start), *sorted(lazy & set(sys.modules)))
"""


def test_the_import_waits_for_nothing_it_may_not_need() -> None:
    """The library adds an eighth; the goal is a quarter."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    ratio, *eager = done.stdout.split()
    assert eager == []
    assert float(ratio) < 1.25


FIRST = {
    "operators": "(a * a).variances, (a / a**0.5).mean, 0.3 * a + a, a**2",
    "a product of scores": "sg.ScoreNetwork(sg.MLP((1,), 8), sg.VPSDE(), sg.V()) * a",
    "a checkpoint": "sg.digits_model()",
    "the recommended sampler": "sg.recommended(a, 5).sample(a, (2, 1))",
    "an exact law": "sg.output_law(sg.Sampler(sg.DDIM(), sg.UniformTime(3)), sg.VPSDE(), (0.5,))",
    "a flow map": "sg.flowmaps.digits_map()",
    "a family of the command line": "__import__('scoregen._families')._families.classes('solver')",
}


APART = """
import os, sys, torch
import scoregen as sg
for use in sys.argv[1:]:
    if not (child := os.fork()):
        a = sg.Gaussian(sg.VPSDE(), torch.zeros(1), 1.0)
        os._exit(eval(use) is None)
    if os.waitpid(child, 0)[1]:
        print(use)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_first_uses_need_no_import_of_another_package() -> None:
    """Each in a process of its own, where the library has been imported and not been used yet.

    Packages that are imported on first use are listed by hand: none is forgotten. `cli` is a
    program.
    """
    packages = sorted(p.parent.name for p in (ROOT / "scoregen").glob("[a-z]*/__init__.py"))
    reached = [f"sg.{name}" for name in packages if name != "cli"]
    done = subprocess.run(
        [sys.executable, "-c", APART, *FIRST.values(), *reached],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
