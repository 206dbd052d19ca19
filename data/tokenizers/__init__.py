"""Tokenizers as plain functions: training, encodings, segments, measures and theory. docs/tokens.md lists all."""
