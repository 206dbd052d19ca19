"""Scaling laws: what they are (`laws`), fits with intervals (`fit`, `isoflop`), runs (`io`), figures (`plots`)."""

from experiments.scaling.fit import HUBER, Extrapolation, Fit, extrapolate, fit
from experiments.scaling.identify import Identified, identify
from experiments.scaling.io import PUBLISHED, Runs, read_csv, read_workdirs
from experiments.scaling.isoflop import IsoFLOP, budgets_of, isoflop
from experiments.scaling.laws import (
    CHINCHILLA,
    DOWNSTREAM,
    LAWS,
    LEVERAGE,
    OVERTRAINING,
    POWER,
    Law,
    absolute,
    compute_optimal,
)
from experiments.scaling.page import NAME as PAGE
from experiments.scaling.study import study, table

__all__ = [
    "CHINCHILLA",
    "DOWNSTREAM",
    "HUBER",
    "LAWS",
    "LEVERAGE",
    "OVERTRAINING",
    "PAGE",
    "POWER",
    "PUBLISHED",
    "Extrapolation",
    "Fit",
    "Identified",
    "IsoFLOP",
    "Law",
    "Runs",
    "absolute",
    "budgets_of",
    "compute_optimal",
    "extrapolate",
    "fit",
    "identify",
    "isoflop",
    "read_csv",
    "read_workdirs",
    "study",
    "table",
]
