"""Shapes (B, T, N, H, K) for tests, benchmarks and tuning; TTT-MLP has a hidden width of 4H."""

SMALL = {"even": (2, 12, 1, 4, 4), "short last mini-batch": (1, 11, 2, 4, 4), "one mini-batch": (2, 3, 1, 4, 8)}
PUBLISHED = {"125m": (8, 2048, 12, 64, 16), "1.3b": (8, 2048, 32, 64, 16)}
