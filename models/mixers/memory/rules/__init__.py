"""The policies as rules over masks, by name: `RULES[name](**options)`; `models.mixers.memory.replay` runs them."""

from models.mixers.memory.rules import evict, merge, select
from models.mixers.memory.rules.base import Full, Prompt, Row, State

RULES = {
    "full": Full,
    "streaming": evict.Streaming,
    "h2o": evict.H2O,
    "a2sf": evict.A2SF,
    "keyformer": evict.Keyformer,
    "scissorhands": evict.Scissorhands,
    "tova": evict.Tova,
    "snap": evict.Snap,
    "pyramid": evict.Pyramid,
    "prefix_kv": merge.PrefixKV,
    "elastic": merge.Elastic,
    "ems": merge.EMS,
    "token_select": select.TokenSelect,
    "quest": select.Quest,
    "random": evict.Random,
    "oracle": select.Oracle,
}

__all__ = ["RULES", "Full", "Prompt", "Row", "State"]
