"""Tables of plain functions in docs/: name, arguments and equation, from the docstrings: python -m
experiments.gallery.formulas.

A page of `PAGES` has a line `<!-- functions -->`; what follows it is made anew. Of each module all that is public and
stands there is listed, so that a page can neither miss a function nor name one that is gone.
"""

import importlib
import inspect
import pathlib
import types

from experiments import workdir as files

MARK = "<!-- functions -->"
DECODING, SERVING = "models.decoding", "experiments.generation.serving"
MEMORY = "models.mixers.memory"
PAGES: dict[str, tuple[str, ...]] = {
    "cache": (
        *(f"{MEMORY}.{name}" for name in ("replay", "scores", "budgets", "merging", "lococo", "selection", "edit")),
        "kernels.column_sums", "kernels.column_sums.noisy", "kernels.attention.noise", "kernels.attention.patterns",
        "kernels.attention.sparse", "kernels.attention.sparse_lanes", "models.mixers.prefill",
        "models.swiftkv",
    ),
    "control": tuple(f"{DECODING}.control.{name}" for name in (
        "gedi", "budget", "semantic", "routing", "rollouts", "search", "superposed", "thinking", "penalties", "repeats",
        "cuts", "regex", "automata", "schema", "nested", "predicates", "conditional", "depth", "sets", "steering",
    )) + ("models.depth", "models.objectives.remaining", "models.objectives.exits", "models.objectives.router",
         "data.roles"),
    "serving": tuple(f"{SERVING}.{name}" for name in (
        "sarathi", "past_future", "batchllm", "prepacking", "splitwise", "cluster", "lamina", "flover", "plan",
        "jobs", "schedulers", "prefix_cache", "costs", "traces", "simulator", "report", "planned", "driven", "cached",
        "apart",
    )),
    "evidence": ("experiments.claims.statistics", "experiments.claims.places", "experiments.scaling.slope"),
    "pretrained": ("models.rope_scaling", "models.lora", "data.conversations",
                   *(f"experiments.pretrained.{name}" for name in ("copying", "packed"))),
    "speculation": (
        *(f"{DECODING}.verify.{name}" for name in (
            "siblings", "kseq", "walk", "rules", "continuous", "denoising", "laws",
        )),
        "models.mixers.slots",
        *(f"{DECODING}.drafts.{name}" for name in (
            "trees", "by_level", "sequoia", "prompts", "ppd", "recycling", "trie", "realign", "adaptive",
        )),
        *(f"models.objectives.{name}" for name in ("eagle", "prompt_tokens", "sorted")), f"{SERVING}.clock",
    ),
}  # fmt: skip


def public(module: types.ModuleType) -> dict[str, object]:
    """The functions and classes that stand in the module, by name, in their order there."""
    mine = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__ and callable(value)
    }
    return {name: value for name, value in mine.items() if inspect.isclass(value) or inspect.isroutine(value)}


def arguments(value: object) -> str:
    """The arguments as one writes them in a call, with their defaults, without types."""
    bare = []
    for each in inspect.signature(value).parameters.values():
        named = _Name(each.default.__name__) if inspect.isroutine(each.default) else each.default
        bare.append(each.replace(annotation=each.empty, default=named))
    return str(inspect.Signature(bare))[1:-1]


class _Name(str):
    """A function as a default, written without its address."""

    __repr__ = str.__str__


def says(value: object) -> str:
    """The first paragraph of the docstring, in one line of a table.

    Errors: ValueError where there is none.
    """
    text = inspect.getdoc(value) or ""
    if not text:
        raise ValueError(f"{value.__module__}.{value.__qualname__} has no docstring; state its equation there.")
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def methods(cls: type) -> dict[str, object]:
    """What a class itself defines and a user calls, by `Class.method`."""
    own = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    return {f"{cls.__name__}.{name}": value for name, value in own.items() if inspect.isfunction(value)}


def table(name: str) -> str:
    """The section of one module."""
    module = importlib.import_module(name)
    lines = [f"### `{name}`", "", " ".join((module.__doc__ or "").split("\n\n")[0].split()), ""]
    lines += ["| name | arguments | what it is |", "|---|---|---|"]
    for what, value in public(module).items():
        rows = {what: value} | (methods(value) if inspect.isclass(value) else {})
        lines += [f"| `{row}` | `{arguments(each)}` | {says(each)} |" for row, each in rows.items()]
    return "\n".join(lines) + "\n"


def page(name: str, text: str) -> str:
    """The page's text with its tables as they are today."""
    return text.split(MARK)[0] + MARK + "\n\n" + "\n".join(map(table, PAGES[name]))


if __name__ == "__main__":
    for name in PAGES:
        path = pathlib.Path("docs") / f"{name}.md"
        files.write_file(path, page(name, path.read_text()).encode())
