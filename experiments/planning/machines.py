"""Machines by name: `v5e:4x4` (described, not here), `h100:8` and `cpu:8` (simulated), `local` (this one)."""

import difflib
import re
from typing import Any

import jax

from experiments.planning.chips import CHIPS, Chip
from experiments.settings.errors import Refused
from kernels import platforms

EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:4x4, tpu7x:2x2x1, h100:8, cpu:8, local"
SIMULATED = ("cpu", *(name for name, chip in CHIPS.items() if chip.compiler == "cpu"))


def devices(topology: str) -> tuple[list[Any], Chip | None]:
    """The devices of `topology` and the `Chip` of one of them, None for a machine that is not in our table.

    A TPU is described by its compiler, which needs the libtpu package and no TPU. `cpu:N` and a GPU's `h100:N` need the
    process to have started with N simulated devices, as `main.py` does. Raises Refused with a topology that works.
    """
    name, _, shape = topology.partition(":")
    if topology == "local":
        return jax.devices(), None
    if name in SIMULATED:
        count = int(shape) if shape.isdigit() else 0
        if not 0 < count == jax.device_count():
            kind = "CPU" if name == "cpu" else "simulated"
            raise Refused(f"--topology={topology} is not {jax.device_count()} {kind} devices; use --topology={name}:8.")
        return jax.devices(), CHIPS.get(name)
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        near = difflib.get_close_matches(name, [*CHIPS, "cpu", "local"], n=1)
        hint = f"did you mean {near[0]}? " if near and near[0] != name else ""
        raise Refused(f"--topology={topology} is unknown; {hint}use one like {EXAMPLES}.")
    return _described(topology), CHIPS[name]


def _described(topology: str) -> list[Any]:
    try:
        return platforms.tpu_devices(topology)
    except Exception as error:  # The compiler's own errors have no common class.
        if "libtpu" in str(error).lower() and "not" in str(error).lower():
            raise Refused(
                f"--topology={topology} needs the TPU compiler; pip install -r requirements-tpu.txt."
            ) from error
        reason = str(error).splitlines()[0][:120].rstrip(".")
        raise Refused(f"--topology={topology} is no shape of this TPU ({reason}); use one like {EXAMPLES}.") from error
