"""Exceptions about a mistake of the user; the text of each is the sentence to show. Imports nothing of the house."""

import _thread
import pathlib
import sys
import threading
import traceback
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROOMS = ("configs", "data", "experiments", "kernels", "models")


class Refused(ValueError):
    """A command that cannot run, in one sentence."""


class ConfigError(ValueError):
    """What is wrong with a config: one sentence per problem, each naming the key, the value and one that works."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one sentence."""


class TrainingDiverged(RuntimeError):
    """The loss, a gradient norm or the state holds NaN or Inf."""


def unraisable(args: Any) -> None:
    """For `sys.unraisablehook`: without what a library's thread says to an event loop that a failure has closed; and
    Ctrl-C in the middle of a finalizer, where Python would forget it, is asked for once more."""
    if isinstance(args.exc_value, KeyboardInterrupt):
        again = threading.Timer(0.01, _thread.interrupt_main)  # Not now: it would end in this function.
        again.daemon = True
        again.start()
        return
    if isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == "Event loop is closed":
        return
    sys.__unraisablehook__(args)


def sentence(error: BaseException) -> str:
    """What to tell a person about `error`; "" for a fault of the program, which needs its traceback.

    Where the house itself raises a ValueError or NotImplementedError, its text is a sentence (an argument, its value, a
    value that works); where a library does, it is a fault of ours.
    """
    if isinstance(error, Refused | ConfigError | CheckpointError | TrainingDiverged):
        return str(error)
    if isinstance(error, OSError):
        if type(error).__str__ is not OSError.__str__ or not error.filename:  # Already a sentence of the house.
            return str(error)
        return f"{error.filename!r} cannot be used: {(error.strerror or 'unknown').lower()}."
    if type(error) in (ValueError, NotImplementedError) and _raised_by_the_house(error):
        return str(error)
    full = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    if full or isinstance(error, MemoryError):
        said = (" ".join(str(error).split()).removeprefix("RESOURCE_EXHAUSTED: ") or "out of memory").rstrip(".")[:200]
        return f"the memory is used up ({said}); use a smaller data.batch_size or eval.batch_size, or a smaller model."
    return ""


def _raised_by_the_house(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    try:
        place = pathlib.Path(frames[-1].filename).resolve().relative_to(ROOT)
    except ValueError:
        return False
    return place.parts[0] in ROOMS
