"""Which checkpoints a run keeps."""

from collections.abc import Mapping


def kept(losses: Mapping[int, float | None], *, last: int, every: int, best: int) -> set[int]:
    """The steps of `losses` to keep.

    Args:
      losses: step -> held-out loss, None where it was not measured. Such a step is never among the best.
      last: the newest so many are kept, at least one.
      every: multiples of it are kept; 0 keeps none for this reason.
      best: the so many steps with the lowest losses are kept; of two equal losses the newer step.
    """
    steps = sorted(losses)
    measured = sorted((loss, -step) for step, loss in losses.items() if loss is not None)
    return {
        *steps[-max(1, last) :],
        *(step for step in steps if every and step % every == 0),
        *(-step for _, step in measured[:best]),
    }
