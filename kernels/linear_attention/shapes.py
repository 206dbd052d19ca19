"""Shapes (B, T, N, H, P, C) for tests, benchmarks and tuning."""

SMALL = {"even": (2, 16, 2, 4, 4, 4), "short last chunk": (1, 13, 2, 4, 6, 5), "one chunk": (1, 5, 1, 8, 4, 8)}
LARGE = {"124m": (8, 1024, 12, 64, 64, 64), "long": (1, 32768, 16, 128, 128, 128)}
