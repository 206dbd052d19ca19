"""Peak rates of chips as their vendors state them: the one table of the house. Ceilings, not measurements.

Sources: Google's "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)" pages of the Cloud TPU documentation (read
November 2026): peak bf16 FLOP/s, HBM capacity and bandwidth, bidirectional interconnect bandwidth per chip over
its ports (4 in a torus of two dimensions, 6 in one of three). `link`: one port, one way.
A device of tpu7x is half a chip. The compiler keeps a little HBM for itself: it decides what fits.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax counts them. flops: bf16 FLOP/s; hbm: bytes; bandwidth, link: bytes per second."""

    name: str
    flops: float
    hbm: float
    bandwidth: float
    link: float
    ports: int


CHIPS = {
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 400e9 / 4 / 2, 4),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 1200e9 / 6 / 2, 6),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1640e9, 800e9 / 4 / 2, 4),
    "tpu7x": Chip("TPU7x, half a chip", 2307e12 / 2, 192 * GIB / 2, 7380e9 / 2, 1200e9 / 6 / 2, 6),
}
