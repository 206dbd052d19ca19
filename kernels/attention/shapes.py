"""One list of shapes for tests, benchmarks and tuning."""

from typing import NamedTuple


class Shape(NamedTuple):
    """q [B, T, N, H] against k, v [B, S, K, H] under a mask without arrays, as `kernels.masks.parse` reads it."""

    name: str
    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    mask: str
    dtype: str


# Small and awkward: odd lengths, every mask, heads alone, grouped and shared, cross attention both ways.
TEST = (
    Shape("full", 2, 63, 63, 4, 4, 32, "full", "float32"),
    Shape("causal", 2, 97, 97, 4, 4, 32, "causal", "float32"),
    Shape("causal_grouped", 2, 63, 63, 4, 2, 32, "causal", "float32"),
    Shape("causal_shared", 1, 97, 97, 4, 1, 64, "causal", "float32"),
    Shape("causal_longer_keys", 2, 63, 97, 2, 2, 32, "causal", "float32"),
    Shape("causal_longer_queries", 1, 97, 63, 2, 1, 32, "causal", "float32"),
    Shape("window", 1, 97, 97, 2, 2, 32, "causal & window(16)", "float32"),
    Shape("window_and_sinks", 1, 97, 97, 2, 2, 32, "causal & (window(16) | sinks(4))", "float32"),
    Shape("prefix", 1, 97, 97, 2, 2, 32, "causal | prefix(31)", "float32"),
    Shape("block_causal", 1, 63, 63, 2, 2, 32, "blockcausal(8)", "float32"),
    Shape("block_diffusion", 1, 126, 126, 2, 1, 32, "blockdiffusion(63, 8)", "float32"),
    Shape("not_causal", 1, 63, 63, 2, 2, 32, "~causal", "float32"),
    Shape("thousand", 1, 1000, 1000, 1, 1, 32, "causal", "float32"),
    Shape("decode", 2, 1, 2050, 4, 2, 32, "causal", "float32"),
)

# What a laptop measures, and what an accelerator does.
BENCH_CPU = (
    Shape("train_256", 16, 256, 256, 4, 4, 64, "causal", "float32"),
    Shape("causal_2k", 1, 2048, 2048, 4, 4, 64, "causal", "float32"),
    Shape("causal_8k", 1, 8192, 8192, 4, 4, 64, "causal", "float32"),
    Shape("window_8k", 1, 8192, 8192, 4, 4, 64, "causal & window(512)", "float32"),
    Shape("block_diffusion_4k", 1, 4096, 4096, 4, 4, 64, "blockdiffusion(2048, 64)", "float32"),
    Shape("decode_8k", 4, 1, 8192, 8, 2, 64, "full", "float32"),
)
BENCH_ACCELERATOR = (  # 16k tokens in all, as published figures have it
    Shape("causal_8k", 2, 8192, 8192, 16, 16, 128, "causal", "bfloat16"),
    Shape("causal_8k_grouped", 2, 8192, 8192, 32, 8, 128, "causal", "bfloat16"),
    Shape("causal_8k_64", 2, 8192, 8192, 32, 32, 64, "causal", "bfloat16"),
    Shape("full_8k", 2, 8192, 8192, 16, 16, 128, "full", "bfloat16"),
    Shape("window_8k", 2, 8192, 8192, 16, 16, 128, "causal & window(1024)", "bfloat16"),
    Shape("block_diffusion_8k", 2, 8192, 8192, 16, 16, 128, "blockdiffusion(4096, 64)", "bfloat16"),
    Shape("causal_128k", 1, 131072, 131072, 8, 8, 128, "causal", "bfloat16"),
    Shape("decode_32k", 16, 1, 32768, 32, 8, 128, "full", "bfloat16"),
)
