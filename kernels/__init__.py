"""The hot parts: one folder per op, a reference beside its TPU and GPU kernels. Depends on jax only."""
