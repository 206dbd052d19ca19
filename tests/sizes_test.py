"""Functions are short enough to read at once, and their parameters few enough to name."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("models", "kernels", "data", "experiments", "configs")
MOST_LINES, MOST_PARAMETERS = 60, 8
LONG = {  # function: why its code is in one piece
    "kernels.attention.gpu_hopper_backward._gradients": "one tile's work, whose order between barriers is its meaning",
}
# Keywords of these are independent of each other and have defaults. A record would be made at every call and read
# once, so they are arguments; what lies behind them takes records.
FORMULAS = {  # plain functions, whose arguments tests/models/plain_functions_test.py holds
    "models.decoding.canvas.assd.sample", "models.decoding.canvas.diffusion.sample",
    "models.decoding.canvas.guided.decode", "models.decoding.canvas.neodiff.sample",
    "models.objectives.block_diffusion.corrupt", "models.objectives.masked_diffusion.corrupt",
}  # fmt: skip
# What a user calls with the settings of a config, or as an operation, and two that hand on all that it is given.
ENTRIES = {
    "kernels.attention.sparse.sparse_attention",
    "data.corpus.load", "data.loader.Loader.__init__", "models.lm.LM.__call__", "models.segmented.Segmented.__call__",
    "models.hamburger.Hamburger.__call__",
    "models.mixers.attend.recall", "experiments.generation.decoder.Decoder._start", "experiments.scaling.study.study",
}  # fmt: skip


def functions():
    """Every function of the rooms: its name, its lines of code without the docstring, and its parameters."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield from within(ast.parse(path.read_text()), module)


def within(node: ast.AST, name: str):
    for child in ast.iter_child_nodes(node):
        own = f"{name}.{child.name}" if hasattr(child, "name") and child.name else name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            told = child.body[0] if ast.get_docstring(child) is not None else None
            lines = child.end_lineno - child.lineno + 1 - (told.end_lineno - told.lineno + 1 if told else 0)
            yield own, lines, child.args
        yield from within(child, own)


def names(*parameters: ast.arg) -> list[str]:
    return [a.arg for a in parameters if a.arg not in ("self", "cls")]


def is_operation(name: str) -> bool:
    """Whether this is a public function of the package of a kernel: arrays, and keywords that a document states."""
    room, package, function, *inner = [*name.split("."), "", ""][:4]
    public = (ROOT / room / package / "__init__.py").is_file() and not function.startswith("_")
    return room == "kernels" and public and not any(inner)


def is_body(name: str) -> bool:
    """Whether this is the body of a Pallas kernel, which has a parameter for each of its blocks."""
    return name.startswith("kernels.") and name.endswith(".kernel")


def test_functions_are_short():
    """A claim is data, however long."""
    found = [(name, lines) for name, lines, _ in functions() if not name.endswith(".get_claim")]
    assert len(found) > 1000
    assert {name for name, lines in found if lines > MOST_LINES} == LONG.keys(), "split it where its parts have names"


def test_functions_have_few_parameters():
    wide = set()
    for name, _, args in functions():
        by_place = names(*args.posonlyargs, *args.args)
        if is_body(name):
            continue
        assert len(by_place) <= MOST_PARAMETERS, f"{name}: nobody can tell the eighth from the ninth; name them"
        if len(by_place) + len(args.kwonlyargs) > MOST_PARAMETERS and not is_operation(name):
            wide.add(name)
    assert wide == FORMULAS | ENTRIES, "give what belongs together one frozen record"
