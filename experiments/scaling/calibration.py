"""How often 95% intervals cover: studies planted by the thousand, for every law and for isoFLOP minima.

    python -m experiments.scaling.calibration                    # 1,000 studies a line; about an hour of CPU time
    python -m experiments.scaling.calibration --studies=60 --only=power,isoflop

A line a design: the law, its runs, where the Huber loss turns linear, and of each parameter the share of studies whose
interval holds the planted value. `inf` is least squares.
"""

import argparse
import math
import zlib
from collections.abc import Mapping

import numpy as np

from experiments.scaling.fit import HUBER, fit
from experiments.scaling.isoflop import isoflop
from experiments.scaling.laws import LAWS, compute_optimal

NOISE = 0.005  # relative, of a loss or leverage; absolute, of an error
PLANTED = {  # published values, where a paper fitted the law
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "overtraining": {"E": 1.84, "a": 212.0, "b": 367.0, "eta": 0.136},
    "power": {"E": 1.7, "A": 900.0, "alpha": 0.16},
    "downstream": {"epsilon": 0.857, "k": 2.21, "gamma": 0.715},
    "leverage": {"a": 1.23, "d": -7.61e-2, "gamma": 1.67e-2, "beta": -0.117, "A_start": 1.63e-2},
}
RANGES = {
    "parameters": (1e7, 1e10), "tokens": (1e9, 1e12), "flops": (1e18, 1e22), "tokens_per_parameter": (5, 640),
    "loss": (2.0, 5.0), "activation_ratio": (0.01, 1.0), "granularity": (1, 32),
}  # fmt: skip
ISOFLOP = "isoflop"
BUDGETS, SIZES, WIDTH = 4, 7, 4.0  # of an isoFLOP study: each budget's sizes go from best / WIDTH to best x WIDTH
DESIGNS = [  # (what, runs, delta)
    *((law, runs, delta) for law in LAWS for runs in (20, 60) for delta in (HUBER, math.inf)),
    (ISOFLOP, BUDGETS * SIZES, math.inf),
]


def planted(law: str, runs: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Columns of `runs` runs of a law, log-uniform in RANGES, with noise."""
    made = LAWS[law]
    columns = {name: np.exp(rng.uniform(*np.log(RANGES[name]), runs)) for name in made.inputs}
    target, noise = made.predict(PLANTED[law], columns), rng.normal(0, NOISE, runs)
    return {**columns, made.target: target * np.exp(noise) if made.log_target else target + noise}


def planted_isoflop(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Columns of BUDGETS budgets with SIZES sizes each about the best of the Chinchilla form, with noise."""
    flops = np.repeat(np.geomspace(1e18, 1e21, BUDGETS), SIZES)
    size = compute_optimal(PLANTED["chinchilla"], flops)["parameters"]
    size = size * np.tile(np.geomspace(1 / WIDTH, WIDTH, SIZES), BUDGETS)
    loss = LAWS["chinchilla"].predict(PLANTED["chinchilla"], {"parameters": size, "tokens": flops / (6 * size)})
    return {"parameters": size, "flops": flops, "loss": loss * np.exp(rng.normal(0, NOISE / 2, len(size)))}


def covered(what: str, runs: int, delta: float, study: int, bootstrap: int) -> dict[str, bool]:
    """Whether each interval of one planted study holds what was planted, by parameter."""
    rng = np.random.default_rng([zlib.crc32(what.encode()), runs, study])
    if what == ISOFLOP:
        low, high = isoflop(planted_isoflop(rng), bootstrap=bootstrap, seed=study).intervals["a"]
        return {"a": bool(low <= compute_optimal(PLANTED["chinchilla"], 1.0)["a"] <= high)}
    intervals = fit(what, planted(what, runs, rng), delta=delta, bootstrap=bootstrap, seed=study).intervals()
    return {name: bool(low <= PLANTED[what][name] <= high) for name, (low, high) in intervals.items()}


def coverage(what: str, runs: int, delta: float, *, studies: int, bootstrap: int = 200) -> dict[str, float]:
    """The share of `studies` planted studies whose 95% interval covers, by parameter."""
    found = [covered(what, runs, delta, study, bootstrap) for study in range(studies)]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def line(what: str, runs: int, delta: float, shares: Mapping[str, float]) -> str:
    """A row of the table."""
    shown = ", ".join(f"{name} {100 * share:.1f}" for name, share in shares.items())
    return f"| {what} | {runs} | {delta:g} | {shown} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--bootstrap", type=int, default=200)
    parser.add_argument("--only", default="", help="designs whose line holds one of the words, between commas")
    asked = parser.parse_args()
    print("| law | runs | Huber delta | of 95% intervals cover, % |\n|---|---|---|---|")
    for design in DESIGNS:
        name = line(*design, {})
        if not asked.only or any(word in name for word in asked.only.split(",")):
            print(line(*design, coverage(*design, studies=asked.studies, bootstrap=asked.bootstrap)), flush=True)
