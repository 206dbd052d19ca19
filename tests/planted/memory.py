"""Bugs of what is kept of a text."""

from tests.planted import Bug

FOLDER = "models/mixers/memory"
TESTS = ("tests/models/memory",)

BUGS = (
    Bug(
        "keyformer: the temperature falls",
        f"{FOLDER}/scores.py",
        "return start + jnp.asarray(step) * ((end - start) / steps)",
        "return start - jnp.asarray(step) * ((end - start) / steps)",
        TESTS,
    ),
    Bug(
        "keyformer: the noise is not divided",
        f"{FOLDER}/scores.py",
        "return softmax((x + noise) / tau, seen)",
        "return softmax(x / tau + noise, seen)",
        TESTS,
    ),
    Bug(
        "scissorhands: votes for, not against",
        f"{FOLDER}/scores.py",
        "return (seen & (p * count < 1)).astype(p.dtype)",
        "return (seen & (p * count >= 1)).astype(p.dtype)",
        TESTS,
    ),
    Bug(
        "snap: a window's end is divided by what is there",
        f"{FOLDER}/scores.py",
        'return stack.sum(0) / kernel if kind == "mean" else stack.max(0)',
        'return stack.sum(0) / (kernel - 1) if kind == "mean" else stack.max(0)',
        TESTS,
    ),
    Bug(
        "of equal scores the first stays",
        f"{FOLDER}/scores.py",
        "jnp.lexsort((position, candidates, score), axis=-1)",
        "jnp.lexsort((-position, candidates, score), axis=-1)",
        TESTS,
    ),
    Bug(
        "one recent token too few",
        f"{FOLDER}/scores.py",
        "(position > newest - recent)",
        "(position > newest - recent + 1)",
        TESTS,
    ),
    Bug(
        "quest: the bound of a page by its least key alone",
        f"{FOLDER}/selection.py",
        "jnp.maximum(q * low, q * high)",
        "jnp.maximum(q * low, q * low)",
        TESTS,
    ),
    Bug(
        "keys are turned back where they should be turned on",
        f"{FOLDER}/edit.py",
        "jnp.asarray(new) - jnp.asarray(old)",
        "jnp.asarray(old) - jnp.asarray(new)",
        TESTS,
    ),
    Bug(
        "a token's own key is not in a rank",
        f"{FOLDER}/selection.py",
        "return jnp.cumsum(attended, axis=-1) - attended",
        "return jnp.cumsum(attended, axis=-1)",
        TESTS,
    ),
)
