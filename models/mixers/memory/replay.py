"""`replay`: one policy over given queries, keys and values, step by step, as a mask over all positions.

Every token keeps its place and a policy says which places are held, so that policies can be compared with lists that
really drop tokens. As memories of the decoding engine, with a fixed number of slots, they are still to be built of the
same formulas (`scores`, `merging`, `selection`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.mixers.memory import scores
from models.mixers.memory.edit import rotate
from models.mixers.memory.rules import RULES, Prompt, Row, State
from models.mixers.memory.selection import ranks


class Replay(NamedTuple):
    """R = T - prompt + 1 records: the first after the prompt, then one after each further token.

    kept: `[R, K, C]` int, positions that are held after the step, ascending, -1 behind them; C is the most that any
      record holds. Of `token_select`, `quest` and `oracle`, which evict nothing, what the step's query attended to.
    scores: `[R, K, C]` of the same tokens, 0 behind them.
    outputs: `[R, N, H]`, attention's output of the last token of the record.
    """

    kept: np.ndarray
    scores: np.ndarray
    outputs: np.ndarray


def replay(
    policy: str, q, k, v, *, prompt: int, theta: float | None = None, pairing: str = "half", **options
) -> Replay:
    """What a policy keeps, scores and gives for one row of tokens and one layer.

    The prompt is read at once by dense causal attention, then the policy keeps what it keeps of it. Each further token
    attends to what is held and to itself (streaming with `evict="before"` and selections say otherwise), and the policy
    keeps what it keeps of both.

    Args:
      policy: a name of `RULES`.
      q: `[T, N, H]`.
      k: `[T, K, H]`; query head n reads key head n // (N/K).
      v: `[T, K, H]`.
      prompt: how many of the T tokens are the prompt, 1 or more.
      theta: where given, q and k are unrotated and rotary embedding of this base is done here: at the
        tokens' positions, or, of `streaming` and `token_select`, at their ranks among what is attended to. None: q and
        k are used as given.
      pairing: of the rotation, "half" or "interleaved".
      **options: of the policy, the fields of its class in `models/mixers/memory/rules`.

    Returns:
      `Replay`; computed in float64 where q is.

    Errors: ValueError for a policy, an option or a prompt that cannot be.
    """
    if policy not in RULES:
        raise ValueError(f"policy={policy!r} is unknown; use one of {', '.join(RULES)}.")
    if not 1 <= prompt <= len(q):
        raise ValueError(f"prompt={prompt} is not within the {len(q)} tokens; use {max(1, len(q) // 2)}.")
    known = {name: None for name in RULES[policy].__dataclass_fields__ if name not in ("theta", "pairing")}
    if unknown := options.keys() - known.keys():
        raise ValueError(f"{min(unknown)} is no option of {policy}; it has {', '.join(known)}.")
    with jax.enable_x64(np.asarray(q).dtype == np.float64):
        q, k, v = (jnp.asarray(x) for x in (q, k, v))
        rule = RULES[policy](**options).sized(prompt, len(q), theta, pairing)
        run = jax.jit(lambda q, k, v: _run(rule, q, k, v, prompt, theta, pairing))
        held, score, out = (np.asarray(x) for x in run(q, k, v))
    most = int(held.sum(-1).max())
    order = np.argsort(~held, axis=-1, kind="stable")[..., :most]
    there = np.take_along_axis(held, order, -1)
    return Replay(np.where(there, order, -1), np.where(there, np.take_along_axis(score, order, -1), 0), out)


def _run(rule, q, k, v, n, theta, pairing):
    """(held, score `[R, K, T]`, out `[R, N, H]`)."""
    (T, N, H), K = q.shape, k.shape[1]
    turn = lambda x, at: x if theta is None else rotate(x, at, theta=theta, pairing=pairing)  # noqa: E731
    here = jnp.arange(T)[:, None]
    asked, keys = turn(q, here), turn(k, here)
    x = scores.logits(asked[:n], keys[:n])
    seen = jnp.tril(jnp.ones((n, n), bool))
    p = scores.softmax(x, seen)
    values = jnp.repeat(v, N // K, axis=1)
    first = jnp.einsum("ns,snh->nh", p[:, -1], values[:n], precision="highest")
    slot = rule.slot and theta is not None
    cached = k if slot else keys
    state = rule.begin(Prompt(x, p, seen, cached.swapaxes(0, 1), v.swapaxes(0, 1), n, T))

    def step(state: State, t):
        wanted, state = rule.attend(state, (q if slot else asked)[t], t)
        own = jnp.arange(T) == t
        wide = wanted if wanted.shape[0] == N else jnp.repeat(wanted, N // K, axis=0)
        k_, v_ = (jnp.repeat(x, N // K, axis=0) for x in (state.k, state.v))
        asking = asked[t]
        if slot:
            rank = ranks(wide)
            k_ = turn(k_, rank)
            asking = turn(q[t], jnp.sum(rank * own, axis=-1))
        x = jnp.einsum("nh,nsh->ns", asking, k_, precision="highest") * H**-0.5
        p = scores.softmax(x, wide)
        out = jnp.einsum("ns,nsh->nh", p, v_, precision="highest")
        state = rule.after(state, Row(x, p, wide, wanted, t, K))
        return state, (state.held, state.score, out)

    _, (held, score, out) = jax.lax.scan(step, state, jnp.arange(n, T))
    return (
        jnp.concatenate([state.held[None], held]),
        jnp.concatenate([state.score[None], score]),
        jnp.concatenate([first[None], out]),
    )
