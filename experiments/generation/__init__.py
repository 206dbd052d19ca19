"""Which generator writes text with a model: the one that its objective names."""

from typing import Any

from experiments.generation.anyorder import AnySubsetFiller, Inserter, Refiner
from experiments.generation.canvas import Filler
from experiments.generation.chatting import spoken_to
from experiments.generation.edited import Edited
from experiments.generation.text import Generator
from experiments.program import Program

GENERATORS = {
    "autoregressive": Generator,
    "canvas": Filler,
    "any_subset": AnySubsetFiller,
    "insertion": Inserter,
    "neodiff": Refiner,
}


def make(program: Program, tokenizer: Any, *, edit_of: str = "") -> Any:
    """What writes text with the model of `program`: token by token, by filling masks in, by insertion, ...

    `edit_of`: the prompt as it was before it was edited (`Edited`).

    Errors: ConfigError where `generate.chat` is asked for and there is no template.
    """
    tokenizer = spoken_to(tokenizer, program.config.generate.chat, program.config.data.template)
    if edit_of:
        return Edited(program, tokenizer, edit_of)
    return GENERATORS[program.objective.generator](program, tokenizer)
