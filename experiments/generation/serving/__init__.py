"""Serving many requests: who reads what in which step (schedulers), with what memory, and how long it takes (clocks).

Plain Python and numpy, without jax: one `StepPlan` drives the simulator and an engine. docs/serving.md lists the
functions.
"""
