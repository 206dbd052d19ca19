"""Bench rows of what is written: a checkpoint beside np.save, tokens of a folder beside the library that makes them."""

import itertools
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import data
from experiments.bench.comparison import Comparison, Planned
from experiments.workdir import disk
from experiments.workdir.checkpoints import Checkpoints

MIB = 2**20
ARRAYS, SIZE = 12, 16 * MIB  # of a state: bytes each
TEXT, VOCAB, AT_ONCE = 24 * MIB, 4096, 256  # bytes of a folder; ids; documents of a call of the library


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    yield Planned("save/192MiB", _save)
    yield Planned("tokenise/bpe", _tokenise)


def _save() -> Comparison:
    """A state that does not compress, with all that a save promises: hashes, reading back, its name at the end."""
    draw, steps, place = np.random.default_rng(0), itertools.count(1), disk.temporary_folder()
    arrays = {f"a{i}": jnp.asarray(draw.normal(size=SIZE // 4).astype(np.float32)) for i in range(ARRAYS)}
    state = {"params": arrays, "step": jnp.int32(1)}
    kept = Checkpoints(f"{place.name}/run", keep_last=1)

    def tessera() -> Any:
        kept.save(next(steps), state, {})
        kept.wait()
        return state["step"]

    def numpy() -> Any:
        for name, value in arrays.items():
            np.save(f"{place.name}/{name}.npy", np.asarray(value))
        return state["step"]

    def check() -> str:
        tessera()
        _, found, _ = kept.restore(state, jax.tree.map(lambda x: x.sharding, state))
        same = all(np.array_equal(found["params"][name], value) for name, value in arrays.items())
        return "" if same else "what was read is not what was saved"

    return Comparison(
        name="save/192MiB",
        candidates={"tessera": tessera, "np.save": numpy},
        baseline="np.save",
        check=check,
        work=(ARRAYS * SIZE / MIB, "MiB"),
    )


def _tokenise() -> Comparison:
    """The standard library's source, each text once: read, divided, encoded, hashed and written; or read and encoded.

    The library gets the texts in batches, as we do: it uses all cores for one.
    """
    place, written = disk.temporary_folder(), 0
    folder, tries = pathlib.Path(place.name) / "texts", itertools.count()
    seen: set[bytes] = set()
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        text = path.read_bytes()
        if text and text not in seen and written < TEXT and "site-packages" not in path.parts:
            disk.write_file(folder / f"{len(seen):05}.txt", text)
            seen.add(text)
            written += len(text)
    given = {"path": str(folder), "validation": 0.05}
    kind = data.load("text", **given, tokenizer="bpe", vocab_size=VOCAB, cache_dir=f"{place.name}/trained").tokenizer

    def tessera() -> Any:
        made = data.load("text", **given, tokenizer=kind, cache_dir=f"{place.name}/{next(tries)}")
        return np.int64(made.train.num_targets + made.valid.num_targets)

    def library() -> Any:
        texts = [path.read_bytes() for path in sorted(folder.iterdir())]
        batches = (texts[i : i + AT_ONCE] for i in range(0, len(texts), AT_ONCE))
        return np.int64(sum(len(ids) for batch in batches for ids in kind.encode_batch(batch)))

    def check() -> str:
        ours, theirs = int(tessera()) - len(seen), int(library())
        return "" if ours == theirs else f"{ours} tokens beside their {theirs}"

    return Comparison(
        name="tokenise/bpe",
        candidates={"tessera": tessera, "library": library},
        baseline="library",
        check=check,
        work=(written / MIB, "MiB"),
        rounds=3,
    )
