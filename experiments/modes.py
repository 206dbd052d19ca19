"""What each `--mode` does, in a few lines; the work is in the module of that name.

What a person can have got wrong is found before anything heavy is imported: jax only after the keys of the config
stand, checkpoints and plots only in the mode that needs them.
"""

import functools
import importlib
import os
import pathlib
import types
from typing import Any

from experiments import preflight
from experiments import workdir as files
from experiments.settings import agreement, identity, keys, named, overrides, processes, smoke, versions
from experiments.settings.errors import ConfigError, Refused
from experiments.workdir.saved import as_begun, check_same, check_workdir, holds_checkpoint, saved_config

Changes = list[overrides.Override]
TOGETHER = ("train", "evaluate", "plan")  # Modes that many processes can run as one.
READING = ("eval", "generate", "seed")  # What the command line may change of a trained model;
MOVED = ("data.path", "data.components", "data.cache_dir")  # and where its text lies now: the same one, by its hash.


def run(flags: Any, changes: Changes) -> None:
    """Runs `flags.mode` with the config of `flags.config` or of the workdir, after the `changes`."""
    {
        "train": train, "evaluate": evaluate, "generate": generate, "export": export, "plan": plan, "report": report,
        "bench": bench, "sweep": sweep, "claim": claim, "ledger": ledger, "list": listing,
        "tokenize": tokenize, "serve": serve,
    }[flags.mode](flags, changes)  # fmt: skip


def config(flags: Any, changes: Changes) -> Any:
    """The config to run, its keys and types checked: the file, else the workdir's own; then the changes; locked."""
    if flags.config is not None:
        made = overrides.load(flags.config)
    elif flags.workdir and (named.workdir(flags) / files.CONFIG).exists():
        made = saved_config(named.workdir(flags))
    else:
        raise Refused("--config is missing; try --config=configs/quickstart.py.")
    overrides.apply(made, changes)
    keys.check_keys(made)
    if flags.smoke:  # What was asked for by name holds in the small run too.
        made = overrides.apply(smoke.shrink(made), changes)
    return made.lock()


def _jax(flags: Any) -> Any:
    """jax, once its versions agree, the other processes are there and its devices answer."""
    problem = versions.disagreement()
    if problem:
        raise Refused(problem)
    if flags.num_processes > 1 and flags.mode not in TOGETHER:
        raise Refused(f"--num_processes={flags.num_processes}: --mode={flags.mode} is for one process; leave it away.")
    processes.quiet_tpu(os.environ)
    processes.join(flags.coordinator, flags.num_processes, flags.process_id)
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/tessera/jax"))
    jax.config.update("jax_compilation_cache_dir", cache)
    try:
        jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = str(error).splitlines()[0].split(" (set JAX_PLATFORMS")[0].rstrip(".")
        raise Refused(f"JAX_PLATFORMS={asked!r}: {said}; use JAX_PLATFORMS=cpu.") from error
    return jax


def _checked(flags: Any, changes: Changes, *, begun: bool = False) -> Any:
    """The config to run, after the whole preflight on the devices that are here; `begun` as in `preflight.check`."""
    made = config(flags, changes)
    jax = _jax(flags)
    preflight.check(made, num_devices=jax.device_count(), begun=begun)
    return made


def _trained_config(flags: Any, changes: Changes) -> Any:
    """The config of the run in the workdir, with what the command line may say about reading it."""
    workdir = named.workdir(flags)
    made = saved_config(workdir)
    if flags.config is not None:  # The command that trained it, with another --mode: the same run, or a refusal.
        asked = config(flags, changes)
        check_same(as_begun(asked, workdir), made.to_dict(), workdir, reading=True)
        for key in (*READING, *MOVED):
            group, _, leaf = key.rpartition(".")
            overrides.value_at(made, group)[leaf] = overrides.value_at(asked, key)
    else:
        was, changes = keys.flatten(made.to_dict()), overrides.today(made, changes)
        overrides.apply(made, changes)
        keys.check_keys(made)
        _check_reading(was, keys.flatten(made.to_dict()))
    preflight.check_generation(made.generate.to_dict())
    asked = {key for key, _ in changes} if flags.config is None else None
    if problems := list(keys.unread_problems(made.to_dict(), only=asked)):
        raise ConfigError(problems)
    return made.lock()


def _check_reading(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises Refused where a saved config (dotted key -> value) differs in more than reading a model may change."""
    differ = [
        key for key in now
        if key.split(".")[0] not in READING and key not in MOVED and not identity.same(was.get(key), now[key])
    ]  # fmt: skip
    if differ:
        asked = ", ".join(f"--config.{key}" for key in differ)
        has = ", ".join(f"{key}={keys.short(was.get(key))}" for key in differ)
        raise Refused(
            f"{asked} cannot change a trained model; change eval or generate, or train another: this one has {has}."
        )


def _bare(flags: Any) -> bool:
    """Whether --config names a model to be read and there is no run in a workdir to read it from."""
    return flags.config is not None and not (flags.workdir and (named.workdir(flags) / files.CONFIG).exists())


def _readable(flags: Any, changes: Changes) -> Any:
    """The config of the run in the workdir; of pretrained weights that no run has taken up, that of --config."""
    if _bare(flags):
        made = config(flags, changes)
        if made.init.pretrained:
            return made
    return _trained_config(flags, changes)


def train(flags: Any, changes: Changes) -> None:
    """Trains, then prints where it ended."""
    workdir, overwrite = named.workdir(flags), getattr(flags, "overwrite", False)
    made = _checked(flags, changes, begun=not overwrite and holds_checkpoint(str(workdir)))
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


def _step(flags: Any) -> str:
    """The checkpoint that --step names, "" for the newest good one."""
    return getattr(flags, "step", "").strip()


def _trained(flags: Any, made: Any) -> Any:
    """The model in the workdir, whose saved config `made` is one that can be built, whoever wrote it."""
    preflight.check_values(made)
    if made.init.pretrained and _bare(flags):
        import jax

        preflight.check(made, num_devices=jax.device_count())
        from experiments.pretrained import loaded

        return loaded.load(made)
    from experiments.workdir import trained

    return trained.load(named.workdir(flags), made, step=_step(flags))


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
    made = _readable(flags, changes)
    _jax(flags)
    from experiments.program import inputs
    from experiments.training import byte_rows, exact_bytes, other_texts, traced
    from experiments.training import evaluate as evaluation

    other_texts.check(made)
    other_texts.check_output(getattr(flags, "output", "") if made.eval.texts else "")
    place = named.workdir(flags) if flags.workdir else pathlib.Path(made.init.pretrained)
    agreement.check_command("evaluate", made.to_dict(), place, step=_step(flags))
    model = _trained(flags, made)
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
    asked, made = named.prompts(flags), _readable(flags, changes)
    _jax(flags)
    from experiments import generation
    from experiments.generation import batch, requests

    model = _trained(flags, made)
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

    made = _readable(flags, changes)
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
    _jax(flags)
    return _trained(flags, made)


def export(flags: Any, changes: Changes) -> None:
    """Writes the parameters as safetensors, or the whole model as a folder of another library's form."""
    workdir, made = named.workdir(flags), _readable(flags, changes)
    _jax(flags)
    from experiments.pretrained import gguf_writing, writing
    from experiments.workdir import export as exporting

    model = _trained(flags, made)
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
        made = _checked(flags, changes)
        from experiments import planning

        said = planning.plan(made)
    else:
        made = config(flags, changes)
        _jax(flags)
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
    _jax(flags)
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
    _jax(flags)
    record = claims.run(made, workdir, name=pathlib.Path(flags.config).name, jobs=flags.jobs)
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
    workdir, made = named.workdir(flags), config(flags, changes)
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
    _jax(flags)
    from experiments import bench as benchmarks

    benchmarks.run(filter=flags.bench_filter, workdir=flags.workdir, topology=flags.topology)
