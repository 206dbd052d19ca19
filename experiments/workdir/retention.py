"""Which checkpoints a run keeps."""

from collections.abc import Mapping


def kept(losses: Mapping[int, float | None], *, last: int, every: int, best: int) -> set[int]:
    """The steps to keep of those in `losses` (step -> held-out loss, None where it was not measured).

    The newest `last` (at least one), the multiples of `every` (0: none), and the `best` lowest losses; of equal losses
    the newer. A step without a loss is among the best of nothing.
    """
    steps = sorted(losses)
    measured = sorted((loss, -step) for step, loss in losses.items() if loss is not None)
    return {
        *steps[-max(1, last) :],
        *(step for step in steps if every and step % every == 0),
        *(-step for _, step in measured[:best]),
    }
