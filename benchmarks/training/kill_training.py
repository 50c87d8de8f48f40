"""Kill trainings at random moments, and check that nothing is corrupt and nothing much is lost.

    OMP_NUM_THREADS=1 python benchmarks/training/kill_training.py --rounds 20

Each round starts the same training over and over, in a forked process each time, and ends it at a
random moment (drawn from the seed) by SIGKILL, SIGTERM or SIGINT, until it comes to its end. Two
ways are tried: a loop over `fit`, and the command `scoregen train`. After every kill

- the checkpoint `model/`, where there is one, loads, and its card states the steps of the weights;
- the resume file, where there is one, loads, and no step is repeated beyond `save_every` after
  SIGKILL, nor any after SIGTERM and SIGINT;
- no file of a dead process is left once the training goes on;

and at the end the weights and their average are, bit for bit, those of an uninterrupted training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors
import torch

import scoregen as sg
from scoregen import cli
from scoregen.data import moons
from scoregen.training import card, fit, load

STEPS, SAVE_EVERY, BATCH, HIDDEN = 120, 7, 64, 64
KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def by_fit(out: Path) -> int:
    """A loop over `fit` that prints every step."""
    with torch.random.fork_rng():
        torch.default_generator.set_state(torch.Generator().manual_seed(0).get_state())
        net = sg.MLP(hidden=HIDDEN, depth=2, classes=2)
    x = moons(2000, 0)
    data = sg.Data(x, (x[:, 0] > 0).long(), name="moons")
    model = sg.ScoreNetwork(net, sg.VPSDE(), sg.V())
    for step in fit(
        model, data, steps=STEPS, batch=BATCH, save_every=SAVE_EVERY, out=out, progress=False
    ):
        print(step.step, flush=True)
    return 0


def by_command(out: Path) -> int:
    """The same through the command line."""
    options = {
        "--out": out,
        "--source": "moons",
        "--network": f"MLP(hidden={HIDDEN}, depth=2)",
        "--steps": STEPS,
        "--batch": BATCH,
        "--save-every": SAVE_EVERY,
        "--device": "cpu",
    }
    return cli.main(["train", *(str(word) for pair in options.items() for word in pair)])


WAYS = {"fit": by_fit, "command": by_command}


def attempt(way: str, out: Path, number: int | None, delay: float) -> tuple[int, list[int]]:
    """Exit code of a training killed after `delay` seconds, and the steps it printed."""
    printed = out / "printed"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(printed, "w") as sys.stdout, open(os.devnull, "w") as sys.stderr:
                code = WAYS[way](out)
        except KeyboardInterrupt:
            code = 130
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        finally:
            os._exit(code)
    if number is not None:
        time.sleep(delay)
        os.kill(child, number)  # of a process that ended and was not waited for: harmless
    _, status = os.waitpid(child, 0)
    steps = [int(word) for word in printed.read_text().split() if word.isdigit()]
    return os.waitstatus_to_exitcode(status), steps if way == "fit" else []


def step_on_disk(out: Path) -> int:
    """Steps behind the resume file; 0 without one. A damaged file raises."""
    path = out / "resume.safetensors"
    if not path.exists():
        return 0
    with safetensors.safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            file.get_tensor(name)
        return int(json.loads(file.metadata()["head"])["done"]["step"])


def check(out: Path) -> None:
    """What lies on disk is whole."""
    if (out / "model").exists():
        load(out / "model")
        steps = card(out / "model")["steps"]
        # the checkpoint is written before the resume file, so it is the same save or the next
        behind = step_on_disk(out)
        if not behind <= steps <= behind + SAVE_EVERY:
            raise SystemExit(f"model/ is of step {steps} and the resume file of step {behind}")


def parts(out: Path) -> list[str]:
    """Files that are not yet whole."""
    return [str(path) for path in out.rglob(".*.part")]


def seal(out: Path) -> str:
    """One hash of all weights, averages and moments at the end."""
    total = hashlib.sha256()
    with safetensors.safe_open(out / "resume.safetensors", framework="np") as file:
        for name in sorted(file.keys()):
            total.update(name.encode() + file.get_tensor(name).tobytes())
    return total.hexdigest()[:16]


def trained(way: str, out: Path, rng: np.random.Generator, longest: float) -> dict[str, int]:
    """Train to the end through kills; how many of each kind there were, and steps repeated."""
    found = dict.fromkeys((*(k.name for k in KILLS), "steps repeated", "before the first save"), 0)
    for _ in range(40):
        number, before = signal.Signals(rng.choice(KILLS)), step_on_disk(out)
        code, steps = attempt(way, out, number, float(rng.uniform(0.0, longest)))
        check(out)
        after = step_on_disk(out)
        if code == 0:
            if after != STEPS or parts(out):
                raise SystemExit(f"ended at step {after}, leaving {parts(out)}")
            return found
        if code not in (-number, 128 + number):
            raise SystemExit(f"{number.name} gave exit code {code}")
        found[number.name] += 1
        found["before the first save"] += after == 0
        if steps and steps[0] != before + 1:
            raise SystemExit(f"resumed at step {steps[0]} from a file of step {before}")
        lost = (steps[-1] if steps else before) - after
        if lost > (SAVE_EVERY if number == signal.SIGKILL else 0):
            raise SystemExit(f"{number.name} lost {lost} steps of {steps[-1]}")
        if after < before:
            raise SystemExit(f"the resume file went back from step {before} to {after}")
        found["steps repeated"] += max(0, lost)
    raise SystemExit("40 attempts did not reach the end; give it a faster machine")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=(*WAYS, "both"), default="both")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no others
    with tempfile.TemporaryDirectory() as root:
        for way in WAYS if args.way == "both" else (args.way,):
            whole, began = Path(root) / way, time.monotonic()
            whole.mkdir()
            if attempt(way, whole, None, 0.0)[0] != 0:
                raise SystemExit(f"{way} does not train")
            took = time.monotonic() - began
            print(f"{way}: uninterrupted {seal(whole)} in {took:.1f} s", flush=True)
            total: dict[str, int] = {}
            for k in range(args.rounds):
                rng = np.random.Generator(np.random.Philox(key=args.seed * 1000 + k))
                out = Path(root) / f"{way}-{k}"
                out.mkdir()
                found = trained(way, out, rng, took)
                if seal(out) != seal(whole):
                    raise SystemExit(f"round {k} of {way} ended with other bits: {out}")
                total = {name: total.get(name, 0) + count for name, count in found.items()}
            shown = ", ".join(f"{count} {name}" for name, count in total.items())
            print(f"{way}: {args.rounds} rounds to the same bits through {shown}", flush=True)


if __name__ == "__main__":
    main()
