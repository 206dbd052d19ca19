"""Shapes `[..., m, n]` for tests, benchmarks and tuning."""

SMALL = {"square": (3, 16, 16), "wide": (2, 2, 24, 40), "tall": (40, 24), "odd": (2, 63, 100), "row": (1, 5)}
# Three matrices of four heads: LaCT at hidden 1536 and 3072.
PUBLISHED = {"lact 760m": (12, 384, 384), "lact 3b": (12, 768, 768)}
