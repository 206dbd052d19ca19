"""What a run does beside its steps: it writes metrics, evaluates the state and saves it."""

import dataclasses
import functools
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax

from experiments import generation, preflight
from experiments import workdir as files
from experiments.preflight import corpus as preflight_corpus
from experiments.program import Program, build, counting, inputs, sharding
from experiments.settings import agreement, processes
from experiments.settings.errors import TrainingDiverged
from experiments.training import evaluate, samples, starting
from experiments.training.clock import Clock
from experiments.training.progress import StepProgress
from experiments.workdir import companions, states, vocabulary, writers
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.saved import check_workdir, holds_checkpoint

MANY = 4  # Passes over a training text from which on it is said how many there are.


class Parts(NamedTuple):
    """What a run is made of before anything is allocated.

    config: of the run.
    corpus: its data.
    template: the hash of the chat template, "" where it is no file.
    program: model, objective and optimizer.
    saves: the checkpoints of the workdir.
    loader: of training batches.
    step: `(state, batch, *companions) -> (state, metrics)`, compiled at its first call.
    eval_step: of `evaluate.make_step`.
    generator: writes the samples.
    flops: of a token, by name.
    ceiling: FLOPs a second that all devices reach in matrix products.
    """

    config: Any
    corpus: Any
    template: str
    program: Program
    saves: Checkpoints
    loader: Any
    step: Any
    eval_step: Any
    generator: Any
    flops: dict[str, float]
    ceiling: float

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch."""
        return self.config.data.batch_size * self.config.data.length

    def facts(self) -> dict[str, Any]:
        """What run.json keeps about this start."""
        return _facts(self.program, self.corpus, self.flops, self.ceiling)


def checked(config: Any, workdir: pathlib.Path, *, overwrite: bool) -> Checkpoints:
    """The checkpoints of a workdir in which `config` may train; raises ConfigError where it may not."""
    agreement.check_command("train", config.to_dict(), workdir, overwrite=overwrite)
    begun = not overwrite and holds_checkpoint(str(workdir))
    preflight.check(config, num_devices=jax.device_count(), begun=begun)
    preflight.check_platform(config, jax.default_backend())
    check_workdir(config, workdir, overwrite=overwrite)
    if config.train.wandb:
        writers.import_wandb(config.train.wandb)
    checkpoint = config.checkpoint
    return Checkpoints(
        workdir, keep_last=checkpoint.keep_last, keep_every=checkpoint.keep_every, keep_best=checkpoint.keep_best,
        config=config.to_dict(),
    )  # fmt: skip


def made(config: Any, workdir: pathlib.Path, saves: Checkpoints, *, overwrite: bool) -> Parts:
    """Data, mesh, model and optimizer: structure only, nothing is allocated."""
    about = {} if overwrite else saves.newest_about()
    named = "" if overwrite else vocabulary.of_run(workdir, about)
    expected = "" if overwrite else about.get("corpus") or inputs.began_with(workdir)
    there = config.copy_and_resolve_references().unlock()  # With the template where it lies now.
    there.data.template = vocabulary.template_now(about, config.data.template, workdir)
    corpus = processes.main_first("corpus", lambda: inputs.load(there, tokenizer=named, expected=expected))
    template = vocabulary.template_hash(there.data.template)
    preflight_corpus.check_corpus(config, corpus)
    mesh = sharding.make_mesh(config)
    program = build(there.lock(), vocab_size=corpus.tokenizer.vocab_size, mesh=mesh)
    program = companions.attach(program, vocab_size=corpus.tokenizer.vocab_size)
    preflight_corpus.check_memory(program)
    step, eval_step = program.train_step(), evaluate.make_step(program)
    loader = inputs.train_loader(config, corpus, program.rows)
    generator, flops = generation.make(program, corpus.tokenizer), counting.flops_per_token(program)
    ceiling = counting.matmul_rate(program.spec.dtype) * _distinct_devices()
    return Parts(config, corpus, template, program, saves, loader, step, eval_step, generator, flops, ceiling)


class Begun(NamedTuple):
    """Where a run begins.

    place: the workdir that it holds.
    command: for command.txt.
    step: the step of the checkpoint from which it goes on; None where it is new.
    about: what that checkpoint says of itself.
    companions: trained models that its loss reads.
    """

    place: starting.Place
    command: str
    step: int | None
    about: dict[str, Any]
    companions: companions.Loaded


@dataclasses.dataclass
class Run:
    """What the loop of `train` does with a state that has come to be; it holds no state itself."""

    parts: Parts
    begun: Begun
    progress: StepProgress

    def __post_init__(self):
        parts, step = self.parts, self.begun.step
        known = -1 if step is None else step  # The step up to which the workdir's files are this run's own.
        elapsed = files.elapsed_seconds(self.workdir, known)
        self.clock = Clock(elapsed, parts.tokens_per_step, parts.flops["total"] / parts.ceiling)
        self.last_eval: dict[str, Any]
        evaluated, self.last_eval = inputs.last_evaluation(self.workdir, known)
        # A run was finished and the line of its last evaluation is gone: a power cut takes what is not yet on disk.
        self.lost = evaluated < known == parts.config.train.steps and not processes.many()
        self.writer: writers.Writer | None = None
        self.pending: tuple[int, Any] | None = None  # a step and its metrics, still on the device
        passes = parts.config.train.steps * parts.config.data.batch_size / parts.loader.num_rows
        read = f"; the steps read the training text {passes:,.0f} times" if passes > MANY else ""
        self.progress.say(inputs.sizes(parts.corpus) + read)
        if said := starting.longer(parts.config, self.begun.about, step):
            self.progress.say(said)

    @property
    def workdir(self) -> pathlib.Path:
        """Where the run writes."""
        return self.begun.place.workdir

    @functools.cached_property
    def prompt(self) -> str:
        """What is continued at each evaluation, "" for nothing."""
        return samples.prompt(self.parts.config, self.parts.corpus)

    def stand(self) -> None:
        """The run stands: from here on it writes."""
        parts, begun = self.parts, self.begun
        self.writer = begun.place.stand(parts.config, begun.command, parts.corpus, parts.saves, begun.step, parts.facts)
        if begun.step is None:
            companions.save_start(parts.program, self.workdir, begun.companions.params)

    def act(self, step: int, state: Any, due: dict[str, bool]) -> None:
        """Evaluates and saves the state of `step`, as is due, once the metrics before it are written."""
        if not (due["evaluate"] or due["save"]):
            return
        self.write_pending()
        self.clock.pause()
        if wrong := states.not_finite(state):
            raise self.diverged(f"{wrong[0]} of the state is not finite at step {step}")
        if due["evaluate"]:
            if self.writer is None:
                self.stand()
            self.measure(step, state)
        if due["save"]:
            loss = self.last_eval["eval/loss"] if due["evaluate"] else None
            self.parts.saves.save(step, state, _about(self.parts, self.begun.companions.facts), loss=loss)
        self.clock.resume()

    def compiles(self) -> None:
        """The first step of this start is next."""
        self._compiling = time.perf_counter()
        self.progress.say("compiling the training step")

    def first_step(self, step: int, metrics: Any) -> None:
        """The first step of this start has run: rates count from here, and the run writes."""
        self.clock.first_step(step, metrics)
        self.progress.compiled(time.perf_counter() - self._compiling)
        self.clock.pause()
        self.stand()
        self.clock.resume()

    def write_pending(self) -> None:
        """Metrics of the update that led to the pending step; a number that is not finite ends the run."""
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending, config = None, self.parts.config
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        finite = math.isfinite(values["train/loss"]) and math.isfinite(values["train/grad_norm"])
        if step % config.train.log_every == 0 or step == config.train.steps or not finite:
            self.writer.scalars(step, {**self._spent(step), **values})
            timing = self.clock.read(step) | self._stood()
            self.writer.timing(step, timing)
            self.progress.update(step, loss=values["train/loss"], **timing)
        if not finite:
            loss, norm = values["train/loss"], values["train/grad_norm"]
            raise self.diverged(f"train/loss={loss} and train/grad_norm={norm} at step {step}")

    def _stood(self) -> dict[str, float]:
        """Seconds that this start stood still for its checkpoints, once there are some."""
        cost = self.parts.saves.cost
        return {"checkpoint_seconds": cost.stood} if cost.stood else {}

    def measure(self, step: int, state: Any) -> None:
        """Evaluates the state of `step`; a number that is not finite ends the run, once it is written."""
        parts, config = self.parts, self.parts.config
        params = parts.program.evaluation_params(state)
        held_out = inputs.eval_batches(config, parts.corpus, parts.program.rows)
        found = evaluate.evaluate(parts.program, parts.eval_step, params, held_out, parts.corpus.tokenizer.token_bytes)
        self.last_eval.clear()
        self.last_eval.update(found)
        self.writer.scalars(step, {**self._spent(step), **found})
        if wrong := evaluate.not_finite(found):
            raise self.diverged(f"{wrong} at step {step}")
        if config.eval.sample_tokens and self.prompt and not self.lost:
            self.writer.sample(step, self.prompt, _sample(parts.generator, params, config, self.prompt))
        self.progress.note(step, found)

    def diverged(self, what: str) -> TrainingDiverged:
        """The error that ends a run whose numbers are not finite; it names the last good checkpoint."""
        saves = self.parts.saves
        saves.wait()
        good = saves.steps()
        return TrainingDiverged(
            f"{what}; the last good checkpoint is step {good[-1] if good else 'none'}; "
            f"try a smaller optimizer.learning_rate than {self.parts.config.optimizer.learning_rate}."
        )

    def stopped(self, step: int, by: str) -> dict[str, Any]:
        """What `train` returns of a run that was asked to stop."""
        self._close()
        self.progress.say(f"stopped by {by} at step {step}; the same command goes on from there.")
        return {"step": step, "stopped": by}

    def finished(self) -> dict[str, Any]:
        """What `train` returns, and result.json holds, of a run that has come to its last step."""
        if self.writer is None:  # A run that was finished before: it stands as it is.
            self.stand()
        parts = self.parts
        self._close()
        steps = parts.config.train.steps
        result = {
            "step": steps, **self._spent(steps), "seconds": self.clock.elapsed(),
            "parameters": counting.parameters(parts.program)["total"], **self.last_eval,
        }  # fmt: skip
        if processes.is_main():
            files.write_json(self.workdir / files.RESULT, result)
        return result

    def _close(self) -> None:
        """Waits until every checkpoint is on disk, and says what they cost."""
        saves = self.parts.saves
        saves.close()
        if saves.cost.saves:
            self.progress.say(str(saves.cost))

    def _spent(self, step: int) -> dict[str, float]:
        """Tokens and FLOPs of the steps before `step`."""
        done = step * self.parts.tokens_per_step
        return {"tokens": done, "flops": done * self.parts.flops["total"]}


def _sample(generator: Any, params: Any, config: Any, prompt: str) -> str:
    """One continuation for the report, drawn as `config.generate` says."""
    options = {**config.generate.to_dict(), "max_tokens": config.eval.sample_tokens}
    return generator(params, [prompt], options, seed=config.seed)[0]


def _about(parts: Parts, companions: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself beside its arrays; `companions`: see `companions.Loaded.facts`."""
    return {
        "config": files.plain(parts.config.to_dict()),
        "versions": {"jax": jax.__version__},
        "corpus": parts.corpus.hash,
        "tokenizer": parts.corpus.tokenizer.hash,
        **({"template": parts.template} if parts.template else {}),
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
