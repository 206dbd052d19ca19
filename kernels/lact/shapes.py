"""Shapes of LaCT for tests, benchmarks and tuning: (B, T, N, H, F, C)."""

SMALL = {
    "even": (2, 24, 2, 8, 12, 8),
    "short last chunk": (1, 29, 2, 8, 8, 8),
    "one chunk": (2, 7, 1, 8, 16, 16),
    "chunk of one": (1, 6, 2, 4, 4, 1),
}
# Hidden 1536 and 3072 with four fast-weight heads, as published for the 760M and 3B language models.
PUBLISHED = {
    "760m": (1, 32768, 4, 384, 384, 2048),
    "3b": (1, 32768, 4, 768, 768, 2048),
}
