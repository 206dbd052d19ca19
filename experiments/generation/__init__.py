"""Which generator writes text with a model: that of its objective."""

from typing import Any

from experiments.generation.anyorder import Drafter, Inserter, Refiner
from experiments.generation.canvas import Filler
from experiments.generation.text import Generator
from experiments.program import Program

GENERATORS = {
    "next_token": Generator,
    "masked_diffusion": Filler,
    "block_diffusion": Filler,
    "score_entropy": Filler,
    "any_subset": Drafter,
    "insertion": Inserter,
    "neodiff": Refiner,
}


def make(program: Program, tokenizer: Any) -> Any:
    """What writes text with the model of `program`: token by token, by filling masks in, by insertion, ..."""
    return GENERATORS[program.config.objective](program, tokenizer)
