"""What each `--mode` does, in a few lines; the work is in the module of that name.

What they read is in `experiments.opening`. Nothing heavy is imported before what a person can have got wrong is found;
checkpoints and plots only in the mode that needs them.
"""

import functools
import importlib
import os
import pathlib
import types
from typing import Any

from experiments import opening
from experiments import workdir as files
from experiments.opening import Changes
from experiments.settings import agreement, named, overrides, processes
from experiments.settings.errors import Refused
from experiments.workdir.saved import as_begun, check_workdir, holds_checkpoint


def run(flags: Any, changes: Changes) -> None:
    """Runs `flags.mode` with the config of `flags.config` or of the workdir, after the `changes`."""
    {
        "train": train, "evaluate": evaluate, "generate": generate, "export": export, "plan": plan, "report": report,
        "bench": bench, "sweep": sweep, "claim": claim, "ledger": ledger, "list": listing,
        "tokenize": tokenize, "serve": serve,
    }[flags.mode](flags, changes)  # fmt: skip


def train(flags: Any, changes: Changes) -> None:
    """Trains, then prints where it ended."""
    workdir, overwrite = named.workdir(flags), getattr(flags, "overwrite", False)
    made = opening.checked(flags, changes, begun=not overwrite and holds_checkpoint(str(workdir)))
    made = made if overwrite else as_begun(made, workdir)
    check_workdir(made, workdir, overwrite=overwrite)  # Again in `train`; here before the heavy imports.
    from experiments import report as reports
    from experiments.training import train as run_training

    before = None if overwrite else _finished(workdir)
    result = run_training(made, workdir, command=overrides.command(), overwrite=overwrite)
    if "stopped" in result or not processes.is_main():
        return
    page = reports.write(workdir)
    samples, _ = files.read_lines(workdir / files.SAMPLES, numbers=False)
    if samples:
        print(f"\na sample:\n{samples[-1]['prompt']}{samples[-1]['text']}\n")
    if before == result["step"]:
        print(f"the run was finished before: all of its {result['step']} steps; give a new --workdir to train again.")
    print(_likelihood(result))
    print(f"report: {page}")


def _finished(workdir: pathlib.Path) -> int | None:
    """The steps of a finished run in `workdir`."""
    try:
        return (files.read_json(workdir / files.RESULT) or {}).get("step")
    except ValueError:  # Written again at the end.
        return None


def _likelihood(result: dict[str, Any]) -> str:
    if "eval/bits_per_byte" not in result:
        return "no evaluation was made; it is made at the last step."
    error = result["eval/bits_per_byte_se"]
    return (
        f"held-out bits per byte {result['eval/kind']} {result['eval/bits_per_byte']:.3f} (standard error {error:.3f})"
    )


def evaluate(flags: Any, changes: Changes) -> None:
    """Likelihood of a checkpoint on the held-out rows."""
    made = opening.readable(flags, changes)
    opening.start_jax(flags)
    from experiments.program import inputs
    from experiments.training import byte_rows, exact_bytes, other_texts, traced
    from experiments.training import evaluate as evaluation

    other_texts.check(made)
    other_texts.check_output(getattr(flags, "output", "") if made.eval.texts else "")
    place = named.workdir(flags) if flags.workdir else pathlib.Path(made.init.pretrained)
    agreement.check_command("evaluate", made.to_dict(), place, step=opening.step(flags))
    model = opening.trained(flags, made)
    exact_bytes.check(model.config, model.program, model.tokenizer)
    agreement.check_start(corpus=model.corpus.hash, tokenizer=model.tokenizer.hash, checkpoint=model.step)
    step = evaluation.make_step(model.program)
    batches = inputs.eval_batches(model.config, model.corpus, model.program.rows)
    found = evaluation.evaluate(model.program, step, model.params, batches, model.tokenizer.token_bytes)
    if wrong := evaluation.not_finite(found):
        raise Refused(f"{wrong} for checkpoint {model.step}: the model overflows on this text; try --step=best.")
    if processes.is_main():
        print(_likelihood(found))
    if made.eval.bytes != "canonical":
        print({"exact": exact_bytes, "rows": byte_rows}[made.eval.bytes].line(model))
    if model.config.eval.trace:
        rows = inputs.eval_batches(model.config, model.corpus, model.program.rows)
        traced.write(model.program, model.params, rows, place, model.tokenizer.decode)
    own = place if flags.workdir else None
    if made.generate.drafter != "none" and model.program.objective.generator == "autoregressive":
        from experiments.generation import held_out

        print(held_out.evaluated(model, made.generate.to_dict(), own))
    if model.config.eval.texts:
        other_texts.show(model, step, workdir=own or "", output=getattr(flags, "output", ""))
    costs = (made.generate.memory, made.generate.prefill) != ("full", "dense")
    for name, asked in (("budgets", made.eval.memories), ("patterns", made.eval.patterns), ("memories", costs)):
        if asked:
            print(importlib.import_module(f"experiments.generation.{name}").of_run(model, own))


def generate(flags: Any, changes: Changes) -> None:
    """Continues prompts."""
    asked, made = named.prompts(flags), opening.readable(flags, changes)
    opening.start_jax(flags)
    from experiments import generation
    from experiments.generation import batch, requests

    model = opening.trained(flags, made)
    if made.generate.merges:
        from experiments.generation import dynamic

        model = dynamic.merged(model, asked)
    lanes = model.program.objective.generator == "autoregressive"
    if flags.output and not lanes:
        raise Refused(
            f"--output={flags.output} is for models that write token by token, which objective={made.objective!r} does "
            "not; leave it away."
        )
    # What drafts were worth is said of prompts that are printed together.
    if lanes and flags.prompts is not None and (flags.output or made.generate.drafter == "none"):
        if flags.output:
            failed = batch.write(model, asked, flags.output)
            print(f"{len(asked):,} prompts, {failed:,} of them failed: {flags.output}")
        else:
            batch.show(model, asked, lambda index, text: requests.show(asked[index], text))
        return
    generator = generation.make(model.program, model.tokenizer, edit_of=made.generate.edit_of)
    requests.interactive(generator, model.params, asked, made.generate.to_dict(), seed=made.seed)


def serve(flags: Any, changes: Changes) -> None:
    """Puts the model behind HTTP; it is loaded in another process, so that this one imports no jax."""
    from experiments.serving import server

    made = opening.readable(flags, changes)
    if made.generate.merges:
        raise Refused(f"generate.merges={made.generate.merges} merges prompts that are known together; use 0.")
    name = server.model_name(named.workdir(flags).resolve().name if flags.workdir else made.init.pretrained)
    lanes = flags.lanes or made.generate.engine.lanes
    serving = server.Serving(name, flags.host, flags.port, lanes, made.generate.engine.queue)
    server.check(serving)
    keep = types.SimpleNamespace(
        **{key: getattr(flags, key) for key in ("mode", "workdir", "config", "step", "coordinator", "num_processes")},
        process_id=flags.process_id,
    )
    server.serve(functools.partial(_loaded, keep, made), serving)


def _loaded(flags: Any, made: Any) -> Any:
    """The model of `serve`, in the process of its engine."""
    opening.start_jax(flags)
    return opening.trained(flags, made)


def export(flags: Any, changes: Changes) -> None:
    """Writes the parameters as safetensors, or the whole model as a folder of another library's form."""
    workdir, made = named.workdir(flags), opening.readable(flags, changes)
    opening.start_jax(flags)
    from experiments.pretrained import gguf_writing, writing
    from experiments.workdir import export as exporting

    model = opening.trained(flags, made)
    form = getattr(flags, "format", "safetensors")
    if form != "safetensors":
        place = workdir / files.EXPORTS[form]
        count = {"hf": writing.hugging_face, "gguf": gguf_writing.save}[form](model, place)
        print(f"{count:,} parameters: {place}")
        return
    plain = writing.merged(model)
    saved = made if plain is model else plain.config
    count = exporting.save(plain.params, files.plain(saved.to_dict()), workdir / exporting.FILE)
    print(f"{count:,} parameters: {workdir / exporting.FILE}")


def plan(flags: Any, changes: Changes) -> None:
    """Prints the plan; with --topology that of a machine which need not be here."""
    folder = named.local("workdir", flags.workdir or "runs/plan")
    if not flags.topology:
        made = opening.checked(flags, changes)
        from experiments import planning

        said = planning.plan(made)
    else:
        made = opening.config(flags, changes)
        opening.start_jax(flags)
        from experiments import planning

        said = planning.plan_for(made, flags.topology, folder)
    if processes.is_main():
        print(said)


def report(flags: Any, changes: Changes) -> None:
    """Rebuilds a run's page, or compares runs."""
    workdir, runs = named.workdir(flags), named.runs(flags)
    for run in runs or [workdir]:
        if not (run / files.CONFIG).exists() and not (run / files.METRICS).exists():
            flag = "runs" if runs else "workdir"
            raise Refused(f"--{flag}={run} holds no run; give the --workdir of a run.")
    from experiments import report as reports

    print(f"report: {reports.compare(runs, workdir / 'comparison.html') if runs else reports.write(workdir)}")


def sweep(flags: Any, changes: Changes) -> None:
    """Runs the trials of a sweep, then its table, comparison and fit."""
    workdir = named.workdir(flags)
    if flags.config is None:
        raise Refused("--config is missing; try --config=configs/sweeps/scaling.py.")
    from experiments import sweep as sweeps
    from experiments.sweep import table

    made = sweeps.load(flags.config)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Accelerators belong to the trials.
    opening.start_jax(flags)
    found = sweeps.run(
        made, workdir, changes=changes, shrink=flags.smoke, jobs=flags.jobs, launcher=flags.launcher,
        command=overrides.command(),
    )  # fmt: skip
    print(f"\n{table.text(found)}\n\n{table.best(found, workdir)}\ntable: {workdir / table.CSV}")
    if page := table.compare(found, workdir):
        print(f"comparison: {page}")
    if "search" in made:
        from experiments.sweep import search

        if drawn := search.draw(made, workdir):
            print(f"plots of the search: {drawn[0].parent}")
    if "study" in made:
        print(f"\n{table.study(made['study'], workdir)}")
    failed = [row for row in found if row["status"] == "failed"]
    if failed:
        reasons = "\n".join(f"  {row['name']} ({row['hash']}): {row['error']}" for row in failed)
        raise Refused(f"{len(failed)} of {len(found)} trials failed; the same command tries them again:\n{reasons}")


def claim(flags: Any, changes: Changes) -> None:
    """Re-tests a claim and prints its rows."""
    workdir = named.workdir(flags)
    if flags.config is None:
        raise Refused("--config is missing; try --config=configs/claims/digits_reversed.py.")
    if changes or flags.smoke:
        given = f"--config.{changes[0][0]}" if changes else "--smoke"
        raise Refused(
            f"{given} does not go with --mode=claim, which runs a claim as it stands; edit a copy of its file."
        )
    from experiments import claims

    made = claims.load(flags.config)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Accelerators belong to the runs.
    opening.start_jax(flags)
    name = pathlib.Path(flags.config).name
    record = claims.run(made, workdir, name=name, first_seed=flags.first_seed, jobs=flags.jobs)
    for row in record["rows"]:
        print(f"\n{row['statement']}\n  published: {row['published']}\n  measured here: {row['measured']}")
        print(f"  scale: {row['scale']}\n  verdict: {row['verdict']}")
    print(f"\n{workdir / claims.FILE}; into the ledger: python main.py --mode=ledger --runs={workdir}")


def ledger(flags: Any, changes: Changes) -> None:
    """Stores claims of --runs and rewrites the ledger."""
    runs = named.runs(flags)
    from experiments.claims import ledger as ledgers

    ledgers.store(runs)
    print("ledger: {}\npage: {}".format(*ledgers.write(page_folder=named.workdir(flags) if flags.workdir else None)))


def listing(flags: Any, changes: Changes) -> None:
    """Prints the gallery."""
    from experiments.gallery import text

    print(text.listing(flags.filter))


def tokenize(flags: Any, changes: Changes) -> None:
    """Learns tokenizers on one corpus and compares them on its held-out documents."""
    workdir, made = named.workdir(flags), opening.config(flags, changes)
    import data
    from experiments import tokenizers

    names = [name.strip() for name in flags.filter.split(",") if name.strip()]
    for name in names:
        if name not in data.TOKENIZERS:
            raise Refused(f"--filter={flags.filter}: {name!r} is no tokenizer; choose of {', '.join(data.TOKENIZERS)}.")
    found = tokenizers.compare(made, workdir, names or list(data.TOKENIZERS))
    print(f"{tokenizers.text(found)}\n{workdir / tokenizers.FILE}, {workdir / tokenizers.FIGURE}")


def bench(flags: Any, changes: Changes) -> None:
    """Times this machine."""
    opening.start_jax(flags)
    from experiments import bench as benchmarks

    benchmarks.run(filter=flags.bench_filter, workdir=flags.workdir, topology=flags.topology, tune=flags.tune)
