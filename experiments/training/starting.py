"""Where a run begins, and the moment from which it writes: nothing is written before its first step has run."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from data import conversations
from experiments import workdir as files
from experiments.pretrained import loaded
from experiments.program import Program, build, optimizers
from experiments.settings import keys, processes
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.workdir import disk, grown, provenance, rewired, transplanted, upcycled, vocabulary, writers
from experiments.workdir.checkpoints import Checkpoints

# What a run leaves in its workdir, and what moves aside when another one takes its place.
LEAVES = (
    files.CONFIG, files.RUN, files.METRICS, files.TIMING, files.SAMPLES, files.DRAFTS, files.MEMORIES, files.TEXTS,
    files.ROUTING, files.RESULT, files.REPORT, files.TOKENIZER, files.TEMPLATE, files.TENSORBOARD, files.CHECKPOINTS,
    files.START, provenance.DIFF, "profile", *files.EXPORTS.values(),
)  # fmt: skip


class Place:
    """The workdir of a run: locked at once if it exists, created (if missing) and written from `stand` on.

    Only process 0 locks and writes; in other processes every method does nothing.
    """

    def __init__(self, workdir: pathlib.Path, *, overwrite: bool = False):
        self.workdir, self._overwrite = workdir, overwrite
        self._active = processes.is_main()
        self._held = files.hold(workdir) if self._active and workdir.exists() else None
        self._writer: writers.Writer | None = None

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._held is not None:
            self._held.close()

    def stand(
        self, config: Any, command: str, corpus: Any, saves: Checkpoints, start: int | None, facts: Callable[[], dict]
    ) -> writers.Writer:
        """Writes config, tokenizer and run.json, and opens the files of metrics.

        Args:
          config: of the run.
          command: for config.json.
          corpus: of the run; its tokenizer is saved.
          saves: the checkpoints; those after `start` are forgotten.
          start: the step that the run resumes from, None if it is new.
          facts: called for what run.json keeps about this start.
        """
        if self._active:
            if self._held is None:
                disk.folder(self.workdir)
                self._held = files.hold(self.workdir)
                self._refuse_if_taken()
            if self._overwrite:
                move_aside(self.workdir)
            if start is not None:
                saves.forget_after(start)
            _save_tokenizer(corpus.tokenizer, self.workdir)
            _save_template(config.data.template, self.workdir)
            command = command or f"train(config, {str(self.workdir)!r})"
            files.write_config(self.workdir, config.to_dict(), command, keys.base())
            writers.truncate(self.workdir, -1 if start is None else start, config.train.steps)
            files.write_run(self.workdir, facts() | {"code": provenance.write(self.workdir)})
        processes.wait_for_all("workdir")  # What was written must stand.
        self._writer = writers.Writer(self.workdir, wandb=config.train.wandb or None, active=self._active)
        return self._writer

    def _refuse_if_taken(self) -> None:
        """Where the folder came into being while this run was being compiled, another one may have trained there."""
        if any(os.path.lexists(self.workdir / name) for name in LEAVES):
            raise ConfigError([
                f"--workdir={self.workdir} was taken by another run while this one was being prepared; start the same "
                "command again to go on with it, or give a new folder."
            ])  # fmt: skip


def _save_tokenizer(tokenizer: Any, workdir: pathlib.Path) -> None:
    """Writes tokenizer.json whole; a tokenizer knows how to save itself to a path of its own."""
    private = workdir / f".{files.TOKENIZER}.{os.getpid()}"
    disk.remove(private)
    tokenizer.save(private)
    data = disk.read_bytes(private)
    disk.remove(private)
    if data != disk.read_bytes(workdir / files.TOKENIZER):
        disk.write_file(workdir / files.TOKENIZER, data)


def _save_template(named: str, workdir: pathlib.Path) -> None:
    """Keeps the file of `data.template`: chats with a model that was copied elsewhere are said as they were learned."""
    try:
        text = conversations.template_of(named)
    except ValueError:  # The file is gone, and the run goes on with its own copy.
        return
    if text != named:
        disk.write_file(workdir / files.TEMPLATE, text.encode())


def move_aside(workdir: pathlib.Path) -> pathlib.Path | None:
    """Moves what a run left in `workdir` to `replaced-TIME` there, and names it; None where there was nothing."""
    there = [name for name in LEAVES if os.path.lexists(workdir / name)]
    if not there:
        return None
    made = workdir / f".{files.REPLACED}"
    disk.own_folder(made)
    aside = disk.move_aside(made, files.REPLACED, name="")
    for name in there:
        disk.rename(workdir / name, aside / name)
    logging.warning("the run before this one was moved to %s.", aside)
    return aside


def state(
    config: Any, workdir: pathlib.Path, program: Program, corpus: Any, saves: Checkpoints, *, overwrite: bool
) -> tuple[int | None, Any, dict]:
    """`(step, state, about)` with which a run begins; the step is None, and `about` empty, where it is a new run.

    1. An unfinished run of this workdir goes on where its newest good checkpoint stands.
    2. A new run may take its parameters from another workdir (init.warm_start).
    3. Or from a smaller model there, with more parameter tokens and the same function (init.grow_from).
    4. Or from one with another tokenizer, there or in the files of another library (init.transplant).
    5. Or from a dense one there, as a mixture of experts (init.upcycle_from).
    6. Or from one there, its later layers rewired to an early one (init.rewire_from).
    7. Or from the files of another library (init.pretrained).
    8. Otherwise from scratch.
    """
    restored = None if overwrite else saves.restore(program.abstract, program.shardings)
    if restored:
        step, found, about = restored
        vocabulary.check_same_corpus(about, corpus, workdir)
        vocabulary.check_template(about, config.data.template, workdir)
        logging.info("resuming %s at step %d", workdir, step)
        return step, found, about
    if not overwrite:
        refuse_lost(config, workdir)
    init = config.init
    if init.warm_start:
        source = grown.source(config, init.warm_start, corpus.tokenizer, key="init.warm_start")
        return None, program.begin(warm(source, program, corpus.tokenizer.vocab_size)), {}
    if init.pretrained:
        return None, program.begin(loaded.parameters(program, corpus.tokenizer)), {}
    if init.grow_from:
        grown.source(config, init.grow_from, corpus.tokenizer, key="init.grow_from")
        return None, grown.state(program, init.grow_from, vocab_size=corpus.tokenizer.vocab_size), {}
    if init.upcycle_from:
        grown.source(config, init.upcycle_from, corpus.tokenizer, key="init.upcycle_from")
        return None, upcycled.state(program, init.upcycle_from, vocab_size=corpus.tokenizer.vocab_size), {}
    if init.rewire_from:
        grown.source(config, rewired.start(config), corpus.tokenizer, key="init.rewire_from")
        return None, rewired.state(program, rewired.start(config), vocab_size=corpus.tokenizer.vocab_size), {}
    if init.transplant:
        return None, transplanted.state(program, init.transplant, corpus), {}
    return None, program.init(), {}


def warm(source: Checkpoints, program: Program, vocab_size: int) -> Any:
    """The parameters of the newest good checkpoint of `source`; heads of the objective are new where it has none."""
    theirs = source.newest_about().get("arrays", {})
    if "heads" not in program.abstract["params"] or any(path.startswith("['params']['heads']") for path in theirs):
        return source.parameters(program)
    bare = program.config.copy_and_resolve_references().unlock()
    bare.objective, bare.optimizer.freeze = "next_token", ()
    trained = source.parameters(build(bare.lock(), vocab_size=vocab_size, mesh=program.mesh))
    return {**program.init()["params"], **trained}


def refuse_lost(config: Any, workdir: pathlib.Path) -> None:
    """Raises CheckpointError if the metrics reach beyond the first saves and no checkpoint is there: they were lost.

    Each save waits for the one before it, so metrics beyond two saves mean that one checkpoint was complete.
    """
    try:
        finished = files.read_json(workdir / files.RESULT) is not None
    except ValueError:
        finished = True
    lines, _ = files.read_lines(workdir / files.METRICS)
    last, every = max((line["step"] for line in lines), default=0), config.checkpoint.every
    if finished or (every and last > 2 * every):
        raise CheckpointError(
            f"--workdir={workdir} holds a run of {last} steps and none of its checkpoints; bring the folder "
            f"{files.CHECKPOINTS} back, give a new --workdir, or add --overwrite to move it aside and start over."
        )


def longer(config: Any, about: Mapping[str, Any], step: int | None) -> str:
    """A sentence for the log if a run resumes with more steps than it began with, else ""."""
    was, now = keys.flatten(about.get("config", {})).get("train.steps"), config.train.steps
    if step is None or not isinstance(was, int) or was >= now:
        return ""
    old, new = (optimizers.schedule(config.optimizer, steps) for steps in (was, now))
    past = np.arange(min(step, 100_000))
    same = np.array_equal(np.asarray(jax.vmap(old)(past)), np.asarray(jax.vmap(new)(past)))
    said = f"the run is made longer: {now} steps, it had {was}"
    if same:
        return f"{said}; its schedule goes on as if it had always had them."
    return (
        f"{said}; optimizer.schedule={config.optimizer.schedule!r} follows the length: at step {step} the rate "
        f"is {float(new(step)):.3g}, and a run of {was} steps ended with {float(old(max(step - 1, 0))):.3g}."
    )
