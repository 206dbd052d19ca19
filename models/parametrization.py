"""How the sizes of a model set its other hyperparameters: scales of initial weights, learning rates, multipliers.

`model.parametrization` names a rule: exponents of how much wider (r = D / base_width), wider in each head (h = H /
base_head_dim) and deeper (l = L / base_layers) the model is than the base at which hyperparameters were tuned. At the
base every rule is `standard`.

    standard   nothing changes: the best learning rate moves with the width
    mup        maximal updates (Yang et al. 2022, arXiv:2203.03466, table 8 for Adam; tied embeddings allowed): a rate
               tuned at the base holds at every width, since each activation moves by the same amount in a step;
               branches by depth as CompleteP (Dey et al. 2025, arXiv:2505.01618, alpha = 1)

Weight decay is multiplied by the schedule's rate only, so it does not change with the width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

WIDE = ("embed", "heads", "hidden")  # Logical axes that grow with D.


@dataclasses.dataclass(frozen=True)
class Rule:
    """Exponents of a multiplier; 0 leaves a number alone."""

    init: float  # of r, on the standard deviation of a kernel whose inputs are wide
    rate: float  # of r, on Adam's learning rate of such a kernel; embeddings, norms and biases keep theirs
    logits: float  # of r, on the logits
    scores: float  # of h, on attention scores beside 1 / sqrt(H): -1/2 makes it 1 / H
    branch: float  # of l, on what a mixer or a channel adds to the residual stream


RULES = {
    "standard": Rule(init=0.0, rate=0.0, logits=0.0, scores=0.0, branch=0.0),
    "mup": Rule(init=-0.5, rate=-1.0, logits=-1.0, scores=-0.5, branch=-1.0),
}


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """A rule and the ratios r, h and l of one model to its base."""

    rule: Rule = RULES["standard"]
    width: float = 1.0
    head: float = 1.0
    depth: float = 1.0

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> "Parametrization":
        """From `config.model` as a plain dict."""
        base = model["mup"]
        head = model["head_dim"] or model["width"] // model["num_heads"]
        return cls(
            RULES[model["parametrization"]],
            width=model["width"] / base["base_width"],
            head=head / (base["base_head_dim"] or head),
            depth=model["num_layers"] / (base["base_layers"] or model["num_layers"]),
        )

    @property
    def logits(self) -> float:
        """Multiplies the logits."""
        return self.width**self.rule.logits

    @property
    def scores(self) -> float:
        """Multiplies attention's queries, and so its scores."""
        return self.head**self.rule.scores

    @property
    def branch(self) -> float:
        """Multiplies what a layer's mixer and channel add to the residual stream."""
        return self.depth**self.rule.branch

    def init(self, fan_in: str | None) -> float:
        """Multiplies the standard deviation of a kernel; `fan_in`: the logical axis of its inputs."""
        return self.width**self.rule.init if fan_in in WIDE else 1.0

    def rate(self, role: str, axes: Sequence[str | None]) -> float:
        """Multiplies the learning rate of a parameter of `role` with these logical `axes`, inputs before outputs."""
        return self.width**self.rule.rate if role == "kernel" and axes[-2] in WIDE else 1.0
