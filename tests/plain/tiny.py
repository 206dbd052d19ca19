"""A model that is quick to compile and to write out: two layers of attention and an MLP in float64, as a Program."""

import jax
import numpy as np

from configs import base
from experiments.program import build, sharding
from tests.plain import layers

V, N, H, T = 9, 2, 4, 6  # ids of the tokenizer, heads, their width, tokens of a row


def config(objective="next_token", **groups):
    """A locked config of that model; groups are dicts, or values with __ for dots."""
    made = base.get_config()
    made.objective = objective
    made.model.update({"width": N * H, "num_heads": N, "num_layers": 2, "dtype": "float64", "param_dtype": "float64"})
    made.model.mlp.hidden = 12
    made.model.init_std = 0.5
    made.data.update({"length": T, "batch_size": 4})
    made.update({name: value for name, value in groups.items() if "__" not in name})
    made.update_from_flattened_dict({k.replace("__", "."): v for k, v in groups.items() if "__" in k})
    return made.lock()


def program(config):
    return build(config, vocab_size=V, mesh=sharding.make_mesh(config, jax.devices()[:1]))


def batch(rows=4, seed=0, bidirectional=False):
    """Packed rows of two documents, of which some tokens are not scored; the last ones of row 0 are padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (rows, T + 1))
    cut = rng.integers(2, T - 1, (rows, 1))
    at = np.arange(T)[None]
    segments = np.where(at < cut, 1, 2)
    segments[0, -1:] = 0
    places = np.where(at < cut, at, at - cut)
    targets = tokens[:, :-1] if bidirectional else tokens[:, 1:]
    mask = (rng.random((rows, T)) < 0.7) & (segments > 0) & (at != cut - 1)
    made = {"tokens": tokens[:, :-1], "targets": targets, "positions": places, "segment_ids": segments}
    return {name: array.astype(np.int32) for name, array in made.items()} | {"scored": mask}


def features(p, x, *, segments, positions, sees=layers.causal, **told):
    """Plain features [T, D] of one row: tokens see what `sees(i, j)` allows within their own segment."""
    see = lambda i, j: segments[i] == segments[j] and sees(i, j)  # noqa: E731
    settings = {"N": N, "K": N, "H": H, "see": see, "positions": positions}
    mixer = lambda p, h: layers.attention(p, h, **settings)  # noqa: E731
    return layers.model(p, x, mixers=[mixer], channel=lambda p, h: layers.mlp(p, h, "gelu"), **told)


def log_probs(p, features, classes=None):
    """Log-probabilities [T, C] of the first `classes` rows of the head."""
    return layers.log_softmax(layers.logits(p, features)[:, :classes])
