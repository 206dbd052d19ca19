"""Peak rates of chips as their vendors state them, and list prices: the one table of the house. Ceilings, not
measurements.

Sources: Google's "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)" pages of the Cloud TPU documentation
(read November 2026): peak bf16 FLOP/s, HBM capacity and bandwidth, bidirectional interconnect bandwidth per chip over
its ports (4 in a torus of two dimensions, 6 in one of three). `link`: one port, one way. NVIDIA's data sheets of A100
80GB SXM, H100 SXM and H200 SXM: dense bf16 FLOP/s, memory, bandwidth, and NVLink's bandwidth one way, here over two
ports, as a ring sends both ways at once.
A device of tpu7x is half a chip. The compiler keeps a little HBM for itself: it decides what fits.

Prices are what an hour of a device cost on demand in US regions, per Google's Cloud TPU price list (v4 to v6e) and
Amazon's list for p4de, p5 and p5en instances over their 8 GPUs, as known in 2025. They were not checked since, they
differ by region and contract, and `plan.price` replaces them. 0: not known.
"""

import dataclasses

GIB = 2**30
PRICES = "a list price of 2025, on demand in the US, not checked here; --config.plan.price=DOLLARS replaces it"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax counts them.

    Args:
      name: as its vendor calls it.
      flops: bf16 FLOP/s.
      hbm: bytes.
      bandwidth: of HBM, bytes per second.
      link: of one port, one way, bytes per second.
      ports: how many of them.
      price: US dollars an hour, 0 if not known.
      compiler: "tpu" where the vendor's compiler describes the chip here; "cpu" where the step can only be compiled for
        as many CPU devices, whose program is cut in the same way but fused and scheduled in another.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    link: float
    ports: int
    price: float = 0.0
    compiler: str = "tpu"


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 600e9 / 6 / 2, 6, 3.22),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 400e9 / 4 / 2, 4, 1.20),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 1200e9 / 6 / 2, 6, 4.20),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1640e9, 800e9 / 4 / 2, 4, 2.70),
    "tpu7x": Chip("TPU7x, half a chip", 2307e12 / 2, 192 * GIB / 2, 7380e9 / 2, 1200e9 / 6 / 2, 6),
    "a100": Chip("A100 80GB SXM", 312e12, 80e9, 2039e9, 300e9 / 2, 2, 3.43, "cpu"),
    "h100": Chip("H100 SXM", 989.4e12, 80e9, 3350e9, 450e9 / 2, 2, 6.88, "cpu"),
    "h200": Chip("H200 SXM", 989.4e12, 141e9, 4800e9, 450e9 / 2, 2, 7.91, "cpu"),
}
