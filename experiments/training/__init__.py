"""Training, from a config and a workdir to a result. Read it downwards; the order of the loop is law:

    (1) act on the OLD state: write the metrics of the step before, evaluate, save
    (2) take a batch
    (3) step
    (4) while the device works, fetch the metrics of the step before

so that the device never waits for the host, every line up to step s is on disk before checkpoint s, and a run killed
anywhere and started again ends with the same bits as the run left alone.
"""

import contextlib
import os
import pathlib
from typing import Any

import jax

from experiments.program import global_batch, inputs
from experiments.settings import agreement, processes
from experiments.settings.errors import TrainingDiverged
from experiments.training import running, starting, stopping
from experiments.training.progress import StepProgress
from experiments.workdir import companions, disk
from experiments.workdir.saved import as_begun

__all__ = ["TrainingDiverged", "train"]


def train(
    config, workdir: str | os.PathLike, *, command: str = "", quiet: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Trains `config` in `workdir` until its last step and returns the result (also in result.json).

    Resumes when the workdir holds an unfinished run of the same config. Nothing is written before the first step has
    run.

    Args:
      config: of the run, see `configs.base.get_config`.
      workdir: the folder of the run.
      command: how the run was started, for command.txt.
      quiet: whether nothing is shown.
      overwrite: whether a run that is there is moved aside and a new one begins.

    Returns:
      step, tokens, flops, seconds, parameters and the last evaluation; or step and stopped, the signal that ended it.

    Raises:
      ValueError: (preflight.ConfigError, CheckpointError) or OSError, one sentence about what does not fit.
      TrainingDiverged: a loss, a gradient norm or an entry of the state is NaN or Inf.
    """
    workdir = pathlib.Path(workdir).expanduser()
    config = config if overwrite else as_begun(config, workdir)
    saves = running.checked(config, workdir, overwrite=overwrite)
    parts = running.made(config, workdir, saves, overwrite=overwrite)
    corpus, program = parts.corpus, parts.program

    with contextlib.ExitStack() as stack:
        place = stack.enter_context(starting.Place(workdir, overwrite=overwrite))
        stack.push(lambda kind, error, trace: None if processes.abandoned(error) else saves.close())
        begun, state, about = starting.state(config, workdir, program, corpus, saves, overwrite=overwrite)
        start, steps = begun or 0, config.train.steps
        facts = {"corpus": corpus.hash, "tokenizer": corpus.tokenizer.hash, "template": parts.template}
        agreement.check_start(**facts, first_step=start)
        read = companions.load(program, workdir, tokenizer=corpus.tokenizer, params=state["params"], about=about)
        beside = [read.params] if read.params else []  # what a step reads beside state and batch
        silent = quiet or not processes.is_main()
        progress = stack.enter_context(StepProgress(steps, start, parts.tokens_per_step, quiet=silent))
        stop = stack.enter_context(stopping.collected())
        run = running.Run(parts, running.Begun(place, command, begun, about, read), progress)
        batches = parts.loader.iterate(start)

        for step in range(start, steps + 1):
            stop.look(step)
            # (1) Act on the old state.
            due = _due(config, step, steps, first=step == start)
            due["evaluate"] |= step == start and run.lost
            due["save"] |= bool(stop.requested) and step > start
            run.act(step, state, due)
            if stop.requested:
                return run.stopped(step, stop.requested)
            if step == steps:
                break
            # (2) Take a batch.
            with run.clock.waiting_for_data():
                batch = global_batch(inputs.prepare(config, corpus, next(batches)), program)
            # (3) Step.
            with _profile(config, step, workdir):
                if step == start:
                    run.compiles()
                state, metrics = parts.step(state, batch, *beside)
                if step == start:
                    run.first_step(step, metrics)
            # (4) Metrics of the step before, while the device works.
            run.write_pending()
            run.pending = (step + 1, metrics)
        return run.finished()


def _due(config, step: int, steps: int, *, first: bool) -> dict[str, bool]:
    """What happens before the update of `step`. A resumed run has already evaluated and saved where it starts."""

    def at(every: int) -> bool:
        return not first and (step == steps or (every > 0 and step % every == 0))

    return {"evaluate": at(config.eval.every), "save": at(config.checkpoint.every)}


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
