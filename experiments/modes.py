"""What each `--mode` does, in a few lines; the work is in the module of that name."""

import os
import pathlib
import shlex
import sys
from typing import Any

from experiments import versions

_problem = versions.disagreement()
if _problem:
    sys.exit(f"error: {_problem}")

import jax  # noqa: E402

from experiments import preflight, smoke  # noqa: E402
from experiments import workdir as files  # noqa: E402


class Refused(ValueError):
    """A command that cannot run, in one sentence."""


from experiments.checkpoints import CheckpointError  # noqa: E402
from experiments.train import TrainingDiverged  # noqa: E402

EXPECTED = (Refused, preflight.ConfigError, CheckpointError, TrainingDiverged, OSError)


def run(flags: Any) -> None:
    """Runs `flags.mode`."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/tessera/jax"))
    jax.config.update("jax_compilation_cache_dir", cache)
    {
        "train": train, "evaluate": evaluate, "generate": generate, "export": export, "plan": plan, "report": report,
        "bench": bench,
    }[flags.mode](flags)  # fmt: skip


def _config(flags: Any) -> Any:
    if flags.config is None:
        raise Refused("--config is missing; try --config=configs/quickstart.py.")
    config = smoke.shrink(flags.config) if flags.smoke else flags.config
    return config.lock()


def _workdir(flags: Any) -> pathlib.Path:
    if not flags.workdir:
        raise Refused("--workdir is missing; try --workdir=runs/first.")
    return pathlib.Path(flags.workdir).expanduser()


def train(flags: Any) -> None:
    """Trains, then prints where it ended."""
    from experiments import report as reports
    from experiments.train import train as run_training

    config, workdir = _config(flags), _workdir(flags)
    result = run_training(config, workdir, command=shlex.join(["python", *sys.argv]))
    if "stopped" in result:
        return
    page = reports.write(workdir)
    samples, _ = files.read_lines(workdir / files.SAMPLES, numbers=False)
    if samples:
        print(f"\na sample:\n{samples[-1]['prompt']}{samples[-1]['text']}\n")
    print(_likelihood(result))
    print(f"report: {page}")


def _likelihood(result: dict[str, Any]) -> str:
    if "eval/bits_per_byte" not in result:
        return "no evaluation was made; set eval.batches."
    error = result["eval/bits_per_byte_se"]
    return (
        f"held-out bits per byte {result['eval/kind']} {result['eval/bits_per_byte']:.3f} (standard error {error:.3f})"
    )


def evaluate(flags: Any) -> None:
    """Likelihood of the newest checkpoint on the held-out batches."""
    from experiments import evaluate as evaluation
    from experiments import inputs, trained

    model = trained.load(_workdir(flags))
    step = evaluation.make_step(model.program)
    batches = inputs.eval_batches(model.config, model.corpus)
    print(
        _likelihood(evaluation.evaluate(model.program, step, model.params, batches, model.corpus.tokenizer.token_bytes))
    )


def generate(flags: Any) -> None:
    """Continues prompts."""
    from experiments import generate as generation
    from experiments import trained

    if (flags.prompt is None) == (flags.prompts is None):
        raise Refused('generate needs either --prompt="text" or --prompts=FILE with one prompt a line.')
    prompts = [flags.prompt] if flags.prompt is not None else pathlib.Path(flags.prompts).read_text().splitlines()
    if not prompts:
        raise Refused(f"--prompts={flags.prompts} is empty; give a file with one prompt a line.")
    model = trained.load(_workdir(flags))
    options = (flags.config or model.config).generate.to_dict()
    generator = generation.Generator(model.program, model.corpus.tokenizer)
    generation.interactive(generator, model.params, prompts, options, seed=model.config.seed)


def export(flags: Any) -> None:
    """Writes the parameters as safetensors."""
    from experiments import export as exporting
    from experiments import trained

    workdir = _workdir(flags)
    model = trained.load(workdir)
    exporting.save(model.params, files.plain(model.config.to_dict()), workdir / "model.safetensors")
    print(workdir / "model.safetensors")


def plan(flags: Any) -> None:
    """Prints the plan."""
    from experiments import plan as planning

    print(planning.plan(_config(flags)))


def report(flags: Any) -> None:
    """Rebuilds a run's page, or compares runs."""
    from experiments import report as reports

    if not flags.runs:
        print(reports.write(_workdir(flags)))
        return
    runs = [pathlib.Path(name.strip()).expanduser() for name in flags.runs.split(",")]
    missing = [run for run in runs if not (run / files.CONFIG).exists()]
    if missing:
        raise Refused(f"--runs: {missing[0]} holds no run; give workdirs of runs, separated by commas.")
    print(reports.compare(runs, _workdir(flags) / "comparison.html"))


def bench(flags: Any) -> None:
    """Times this machine."""
    from experiments import bench as benchmarks

    benchmarks.run(filter=flags.bench_filter, workdir=flags.workdir, topology=flags.topology)
