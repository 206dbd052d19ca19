"""`eval.bytes=rows`: the exact law of the next byte at every place of held-out text, and what it costs.

`data.tokenizers.covers.ByteLaw` asks the model for the law of the next token behind every sequence of tokens that ends
at some byte. Which these are is known from the tokenizer alone, so that the model reads them together: in stretches of
few tokens of the text's encoding, the beginnings of a stretch being short rows behind what stands before it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizers import covers, endings
from experiments.program import Program
from experiments.settings.errors import ConfigError
from experiments.training import exact_bytes
from experiments.training.evaluate import bits_a_byte
from kernels import masks
from models.decoding import rows as lanes

_STRETCH = 4  # Tokens of the encoding that share a state.
_TOGETHER = 16  # Rows of one pass.
BYTES, DOCUMENTS = 128, 4  # How much of how many documents is read: all tokens are tried behind each byte.


@dataclasses.dataclass(frozen=True)
class Law:
    """The law of one text, nats.

    Args:
      rows: `[bytes, 256]` joint log P(x_1 .. x_t, b).
      normalised: -sum_t log P(x_t | before), each normalised over bytes.
      exact: -log P(x), the sum over covers.
    """

    rows: np.ndarray
    normalised: float
    exact: float


def make_step(program: Program) -> Callable:
    """Jitted `(params, head [1, T], rows [R, S], at [R]) -> [R, V]`: log-probabilities of the token that follows
    the head and `rows[r, : at[r] + 1]`; -1 is padding."""

    def step(params: Any, head: jax.Array, rows: jax.Array, at: jax.Array) -> jax.Array:
        model = program.decoder(params).for_decoding()
        places = lambda ids: jnp.where(ids >= 0, jnp.arange(ids.shape[1]), -1)  # noqa: E731
        state = model.init_state(1, head.shape[1] + rows.shape[1])
        told = {"mask": masks.Causal(), "positions": places(head)}
        state = model(jnp.maximum(head, 0), state=state, fresh=True, **told).state
        place = jnp.where(rows >= 0, state["slots"].length[:, None] + places(rows), -1)
        state = lanes.repeat(state, len(rows))
        out = model(jnp.maximum(rows, 0), mask=masks.Causal(), positions=place, state=state)
        features = jnp.take_along_axis(out.features, at[:, None, None], axis=1)
        return jax.nn.log_softmax(model.logits(features)[:, 0], axis=-1)

    return program.jit(step)


def asked(tokenizer: Any, text: bytes, pieces: endings.Pieces) -> list[covers.Ids]:
    """The sequences of tokens that end at some byte of `text` before its last: behind each the model is asked once."""
    exactly = endings.Exactly(tokenizer, pieces, text)
    return list(dict.fromkeys(ids for end in range(len(text)) for ids in exactly(end)))


def laws(step: Callable, params: Any, tokenizer: Any, texts: Sequence[bytes]) -> tuple[list[Law], int, int]:
    """The law of every byte of each text; tokens that the model read, padding included; tokens of the encodings."""
    pieces = endings.Pieces(tokenizer)
    found, read, plain = [], 0, 0
    for text in texts:
        ids = tuple(map(int, tokenizer.encode(text)))
        behind, tokens = _behind(step, params, tokenizer, ids, asked(tokenizer, text, pieces))
        model = lambda sequence, behind=behind: behind[sequence]  # noqa: E731
        law = covers.ByteLaw(tokenizer, model, _valid(tokenizer, pieces, behind))
        rows, normalised = [], 0.0
        for byte in text:
            rows.append(law.row().log_joint)
            normalised -= law.read(byte)
        found.append(Law(np.stack(rows), normalised, -law.log_p))
        read, plain = read + tokens, plain + len(ids)
    return found, read, plain


def _behind(
    step: Callable, params: Any, tokenizer: Any, ids: covers.Ids, sequences: Sequence[covers.Ids]
) -> tuple[dict[covers.Ids, np.ndarray], int]:
    """The law of the next token `[V]` behind each sequence, and tokens that were read."""
    whole, found, read = (tokenizer.bos, *ids), {}, 0
    stretches: dict[int, list[covers.Ids]] = {}
    for each in sequences:
        shared = exact_bytes.shared(whole, (tokenizer.bos, *each))
        stretches.setdefault((shared - 1) // _STRETCH * _STRETCH, []).append(each)
    # One size of all, since a program is compiled for each.
    before = exact_bytes.power(max(1, *stretches))
    width = exact_bytes.power(max(len(each) + 1 - cut for cut, some in stretches.items() for each in some))
    for cut, some in sorted(stretches.items()):
        head = _padded([whole[:cut]], before)
        tails = [(tokenizer.bos, *each)[cut:] for each in some]
        for first in range(0, len(some), _TOGETHER):
            part = tails[first : first + _TOGETHER]
            rows = _padded(part, width, _TOGETHER)
            last = np.array([len(tail) - 1 for tail in part] + [0] * (len(rows) - len(part)), np.int32)
            out = np.asarray(step(params, head, rows, last), np.float64)
            found |= dict(zip(some[first : first + _TOGETHER], out, strict=False))
            read += head.size + rows.size
    return found, read


def _padded(rows: Sequence[Sequence[int]], width: int, count: int = 1) -> np.ndarray:
    made = np.full((max(count, len(rows)), width), -1, np.int32)
    for row, ids in zip(made, rows, strict=False):
        row[: len(ids)] = ids
    return made


def _valid(tokenizer: Any, pieces: endings.Pieces, behind: dict) -> Callable[[covers.Ids], bool]:
    """Whether a sequence of those asked for, and one more token, begins an encoding; all tokens are tried at once."""

    @functools.cache
    def after(ids: covers.Ids) -> np.ndarray:
        return np.array(endings.followers(tokenizer, ids, pieces))

    return lambda ids: bool(after(ids[:-1])[ids[-1]]) if ids[:-1] in behind else False


def unreached(tokenizer: Any, text: bytes) -> ConfigError:
    """The error where a byte of `text` is reached by no sequence that counts as the beginning of an encoding.

    Tokenizers that split blanks by what stands behind them, as those of words do, encode "\\n\\n" as one token and
    "\\n\\na" as three: there the beginning of an encoding is not the encoding of a beginning.
    """
    name = type(tokenizer).__name__
    return ConfigError([
        f"eval.bytes='rows' finds no encoding for some byte of the text that begins with {text[:24]!r}: this {name} "
        "encodes it by what stands behind it; use eval.bytes='exact'."
    ])  # fmt: skip


def line(model: Any) -> str:
    """The exact laws of the bytes of held-out beginnings of a trained model, in words."""
    start = time.perf_counter()
    texts = []
    for text in exact_bytes.beginnings(model):
        cut = text[:BYTES]
        texts.append(cut[: len(cut) - covers.unfinished(cut)])
        if len(texts) == DOCUMENTS:
            break
    texts = [text for text in texts if text]
    if not texts:
        raise exact_bytes.no_text("rows")
    found, read, plain = laws(make_step(model.program), model.params, model.tokenizer, texts)
    sizes = np.array([len(text) for text in texts], float)
    normalised, exact = (np.array([getattr(law, name) for law in found]) for name in ("normalised", "exact"))
    if not np.isfinite(normalised).all():
        raise unreached(model.tokenizer, texts[int(np.argmin(np.isfinite(normalised)))])
    return (
        f"bits per byte by every byte's own law: {bits_a_byte(normalised, sizes)}; as the probability of the bytes: "
        f"{bits_a_byte(exact, sizes)}; {int(sizes.sum()):,} bytes of {len(texts)} held-out "
        f"document{'s' * (len(texts) != 1)}\n"
        f"cost: {read / plain:.1f} x the tokens of the encodings, {time.perf_counter() - start:.1f} s"
    )
