"""Training, from a config and a workdir to a result. Read it downwards; the order of the loop is law:

    (1) act on the OLD state: write the metrics of the step before, evaluate, save
    (2) take a batch
    (3) step
    (4) while the device works, fetch the metrics of the step before

so that the device never waits for the host, every line up to step s is on disk before checkpoint s, and a run killed
anywhere and started again ends with the same bits as the run left alone.
"""

import contextlib
import math
import os
import pathlib
import resource
import sys
import time
from typing import Any

import jax

from experiments import generation, preflight
from experiments import workdir as files
from experiments.preflight import corpus as preflight_corpus
from experiments.program import Program, build, counting, global_batch, inputs, sharding
from experiments.settings import agreement, processes
from experiments.settings.errors import TrainingDiverged
from experiments.training import evaluate, starting, stopping
from experiments.training.progress import StepProgress
from experiments.workdir import companions, disk, states, vocabulary, writers
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.saved import as_begun, check_workdir, holds_checkpoint


def train(
    config, workdir: str | os.PathLike, *, command: str = "", quiet: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Trains `config` in `workdir` until its last step and returns the result (also in result.json).

    Resumes when the workdir holds an unfinished run of the same config; `overwrite` moves any run there aside and
    begins anew. Nothing is written before the first step has run. Raises ValueError (preflight.ConfigError,
    CheckpointError) or OSError with one sentence when something does not fit, TrainingDiverged on NaN or Inf.
    """
    workdir = pathlib.Path(workdir).expanduser()
    config = config if overwrite else as_begun(config, workdir)
    agreement.check_command("train", config.to_dict(), workdir, overwrite=overwrite)

    # ==================== Preflight: everything that can be known before a compile ====================
    begun = not overwrite and holds_checkpoint(str(workdir))
    preflight.check(config, num_devices=jax.device_count(), begun=begun)
    preflight.check_platform(config, jax.default_backend())
    check_workdir(config, workdir, overwrite=overwrite)
    if config.train.wandb:
        writers.import_wandb(config.train.wandb)

    checkpoint = config.checkpoint
    saves = Checkpoints(
        workdir, keep_last=checkpoint.keep_last, keep_every=checkpoint.keep_every, keep_best=checkpoint.keep_best,
        config=config.to_dict(),
    )  # fmt: skip

    # ==================== Data, mesh, model, optimizer: structure only, nothing allocated ====================
    about = {} if overwrite else saves.newest_about()
    named = "" if overwrite else vocabulary.of_run(workdir, about)
    expected = "" if overwrite else about.get("corpus") or inputs.began_with(workdir)
    corpus = processes.main_first("corpus", lambda: inputs.load(config, tokenizer=named, expected=expected))
    template = vocabulary.template_hash(config.data.template)
    preflight_corpus.check_corpus(config, corpus)
    mesh = sharding.make_mesh(config)
    program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=mesh)
    program = companions.attach(program, vocab_size=corpus.tokenizer.vocab_size)
    preflight_corpus.check_memory(program)
    step_fn, eval_fn = program.train_step(), evaluate.make_step(program)
    loader = inputs.train_loader(config, corpus, program.rows)
    generator = generation.make(program, corpus.tokenizer)
    flops = counting.flops_per_token(program)
    ceiling = counting.matmul_rate(program.spec.dtype) * _distinct_devices()

    with contextlib.ExitStack() as stack:
        place = stack.enter_context(starting.Place(workdir, overwrite=overwrite))
        stack.push(lambda kind, error, trace: None if processes.abandoned(error) else saves.close())
        first, state, about = starting.state(config, workdir, program, corpus, saves, overwrite=overwrite)
        start = first or 0
        agreement.check_start(corpus=corpus.hash, tokenizer=corpus.tokenizer.hash, template=template, first_step=start)
        read = companions.load(program, workdir, tokenizer=corpus.tokenizer, params=state["params"], about=about)
        beside = [read.params] if read.params else []  # what a step reads beside state and batch

        # ==================== The loop ====================
        steps = config.train.steps
        tokens_per_step = config.data.batch_size * config.data.length
        known = -1 if first is None else first  # The step up to which the workdir's files are this run's own.
        clock = _Clock(files.elapsed_seconds(workdir, known), tokens_per_step, flops["total"] / ceiling)
        last_eval: dict[str, Any] = inputs.last_evaluation(workdir, known)
        silent = quiet or not processes.is_main()
        progress = stack.enter_context(StepProgress(steps, start, tokens_per_step, quiet=silent))
        stop = stack.enter_context(stopping.collected())
        progress.say(inputs.sizes(corpus))
        if said := starting.longer(config, about, first):
            progress.say(said)
        batches = loader.iterate(start)
        writer: writers.Writer | None = None
        pending: tuple[int, Any] | None = None

        def stand() -> writers.Writer:
            """The run stands: from here on it writes."""
            facts = lambda: _facts(program, corpus, flops, ceiling)  # noqa: E731
            opened = place.stand(config, command, corpus, saves, first, facts)
            if first is None:
                companions.save_start(program, workdir, read.params)
            return opened

        def diverged(what: str) -> TrainingDiverged:
            saves.wait()
            good = saves.steps()
            return TrainingDiverged(
                f"{what}; the last good checkpoint is step {good[-1] if good else 'none'}; "
                f"try a smaller optimizer.learning_rate than {config.optimizer.learning_rate}."
            )

        def write_metrics(step: int, metrics: Any) -> None:
            """Metrics of the update that led to `step`; a number that is not finite ends the run."""
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            finite = math.isfinite(values["train/loss"]) and math.isfinite(values["train/grad_norm"])
            if step % config.train.log_every == 0 or step == steps or not finite:
                done = step * tokens_per_step
                writer.scalars(step, {"tokens": done, "flops": done * flops["total"], **values})
                timing = clock.read(step)
                writer.timing(step, timing)
                progress.update(step, loss=values["train/loss"], **timing)
            if not finite:
                loss, norm = values["train/loss"], values["train/grad_norm"]
                raise diverged(f"train/loss={loss} and train/grad_norm={norm} at step {step}")

        def measure(step: int) -> None:
            """Evaluates the state of `step`; a number that is not finite ends the run, once it is written."""
            params = program.evaluation_params(state)
            held_out = inputs.eval_batches(config, corpus, program.rows)
            found = evaluate.evaluate(program, eval_fn, params, held_out, corpus.tokenizer.token_bytes)
            last_eval.clear()
            last_eval.update(found)
            done = step * tokens_per_step
            writer.scalars(step, {"tokens": done, "flops": done * flops["total"], **found})
            if wrong := evaluate.not_finite(found):
                raise diverged(f"{wrong} at step {step}")
            if config.eval.sample_prompt and config.eval.sample_tokens:
                writer.sample(step, config.eval.sample_prompt, _sample(generator, params, config))
            progress.note(step, found)

        for step in range(start, steps + 1):
            stop.look(step)
            # (1) Act on the old state.
            due = _due(config, step, steps, first=step == start)
            due["save"] |= bool(stop.requested) and step > start
            if (due["evaluate"] or due["save"]) and pending:
                write_metrics(*pending)
                pending = None
            if due["evaluate"] or due["save"]:
                clock.pause()
                if wrong := states.not_finite(state):
                    raise diverged(f"{wrong[0]} of the state is not finite at step {step}")
                if due["evaluate"]:
                    measure(step)
                if due["save"]:
                    loss = last_eval["eval/loss"] if due["evaluate"] else None
                    saves.save(step, state, _about(config, corpus, template, read.facts), loss=loss)
                clock.resume()
            if stop.requested:
                saves.close()
                progress.say(f"stopped by {stop.requested} at step {step}; the same command goes on from there.")
                return {"step": step, "stopped": stop.requested}
            if step == steps:
                break
            # (2) Take a batch.
            with clock.waiting_for_data():
                batch = global_batch(inputs.prepare(config, corpus, next(batches)), program)
            # (3) Step.
            with _profile(config, step, workdir):
                if step == start:
                    compiling = time.perf_counter()
                    progress.say("compiling the training step")
                state, metrics = step_fn(state, batch, *beside)
                if step == start:
                    clock.first_step(step, metrics)
                    progress.compiled(time.perf_counter() - compiling)
                    clock.pause()
                    writer = stand()
                    clock.resume()
            # (4) Metrics of the step before, while the device works.
            if pending:
                write_metrics(*pending)
            pending = (step + 1, metrics)
        if writer is None:  # A run that was finished before: it stands as it is.
            stand()

        # ==================== The end ====================
        saves.close()
        result = {
            "step": steps, "tokens": steps * tokens_per_step, "flops": steps * tokens_per_step * flops["total"],
            "seconds": clock.elapsed(), "parameters": counting.parameters(program)["total"], **last_eval,
        }  # fmt: skip
        if processes.is_main():
            files.write_json(workdir / files.RESULT, result)
        return result


def _due(config, step: int, steps: int, *, first: bool) -> dict[str, bool]:
    """What happens before the update of `step`. A resumed run has already evaluated and saved where it starts."""

    def at(every: int) -> bool:
        return not first and (step == steps or (every > 0 and step % every == 0))

    return {"evaluate": at(config.eval.every), "save": at(config.checkpoint.every)}


def _sample(generator: Any, params: Any, config) -> str:
    """One continuation for the report, drawn as `config.generate` says."""
    options = {**config.generate.to_dict(), "max_tokens": config.eval.sample_tokens}
    return generator(params, [config.eval.sample_prompt], options, seed=config.seed)[0]


def _about(config, corpus: Any, template: str, companions: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself beside its arrays; `companions`: see `companions.Read.facts`.

    template: the hash of the chat template, "" where it is no file.
    """
    return {
        "config": files.plain(config.to_dict()),
        "versions": {"jax": jax.__version__},
        "corpus": corpus.hash,
        "tokenizer": corpus.tokenizer.hash,
        **({"template": template} if template else {}),
        **({"companions": companions} if companions else {}),
    }


def _facts(program: Program, corpus: Any, flops: dict, ceiling: float) -> dict[str, Any]:
    """What run.json keeps about this start."""
    return {
        "environment": files.environment(),
        "corpus": {"hash": corpus.hash, **corpus.info, **inputs.references(corpus)},
        "tokenizer": corpus.tokenizer.name,
        "parameters": counting.parameters(program),
        "flops_per_token": flops["total"],
        "matmul_flops_per_second": ceiling,
        "mesh": {axis: size for axis, size in program.mesh.shape.items() if size > 1},
        **({"state_bytes": counting.state_bytes(program)} if program.objective.causal else {}),
    }


def _distinct_devices() -> int:
    """Devices that compute side by side: fake CPU devices share one machine."""
    return 1 if jax.devices()[0].platform == "cpu" else jax.device_count()


class _Clock:
    """Wall time of training, without evaluation and saving, and what follows from it."""

    def __init__(self, elapsed: float, tokens_per_step: int, seconds_per_token: float):
        self._before, self._tokens, self._ideal = elapsed, tokens_per_step, seconds_per_token
        self._start = time.perf_counter()
        self._paused_at: float | None = None
        self._mark: tuple[int, float] | None = None
        self._waited = 0.0

    def elapsed(self) -> float:
        return self._before + (self._paused_at or time.perf_counter()) - self._start

    def pause(self) -> None:
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        self._start += time.perf_counter() - self._paused_at
        self._paused_at = None

    @contextlib.contextmanager
    def waiting_for_data(self):
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def first_step(self, step: int, metrics: Any) -> None:
        """Rates count from the end of the first step, which compiles."""
        jax.block_until_ready(metrics)
        self._mark = (step + 1, self.elapsed())

    def read(self, step: int) -> dict[str, float]:
        now = self.elapsed()
        timing = {"seconds": now, "data_wait_seconds": self._waited, "peak_memory_bytes": peak_memory()}
        if self._mark and step > self._mark[0]:
            rate = (step - self._mark[0]) * self._tokens / max(now - self._mark[1], 1e-9)
            timing |= {"tokens_per_second": rate, "mfu": rate * self._ideal}
            self._mark = (step, now)
        return timing


def peak_memory() -> int:
    """Peak bytes of the accelerator where it reports them, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def _profile(config, step: int, workdir: pathlib.Path):
    """A profiler window of `train.profile_steps` steps from `train.profile_step` on, into WORKDIR/profile."""
    first, last = config.train.profile_step, config.train.profile_step + config.train.profile_steps - 1
    if step == first:
        for name in ("profile", "profile/plugins", "profile/plugins/profile"):  # The profiler follows links.
            disk.own_folder(workdir / name)
        jax.profiler.start_trace(workdir / "profile")
    yield
    if step == last and first >= 0:
        jax.effects_barrier()
        jax.profiler.stop_trace()
