"""What the preflight knows of an optimizer and its schedule: runs too short for them, what does not go together."""

from collections.abc import Iterator
from typing import Any


def problems(config: Any) -> Iterator[str]:
    """What `config.optimizer` cannot be in a run of `config.train.steps` updates."""
    from experiments.program.optimizers import warmup_steps

    options, steps = config.optimizer, config.train.steps
    warmup = warmup_steps(options, steps)
    if options.counting == "updates" and warmup >= max(2, steps):
        said = f"optimizer.warmup={options.warmup:g}" + (f" is {warmup} updates, which" if options.warmup < 1 else "")
        yield f"{said} leaves nothing of train.steps={steps} after it; use e.g. optimizer.warmup={steps // 2}."
    if options.name != "schedule_free":
        return
    if options.schedule != "constant":
        yield (
            f"optimizer.schedule={options.schedule!r} decays a rate that schedule_free must keep; "
            "use optimizer.schedule='constant'."
        )
    if not options.b1:
        yield "optimizer.b1=0.0 leaves schedule_free no average in its parameters; use optimizer.b1=0.9."
    if options.rounding == "stochastic":
        yield (
            "optimizer.rounding='stochastic' puts noise on the average that schedule_free works out from its "
            "parameters; use optimizer.rounding='master'."
        )
