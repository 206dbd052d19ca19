"""Runs trials side by side until each is finished, failed, or everything is told to stop."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence

from experiments import workdir as files
from experiments.settings import keys
from experiments.sweep import process
from experiments.sweep.launchers import Job, Launcher
from experiments.sweep.progress import SweepProgress
from experiments.sweep.trials import Trial
from experiments.training import stopping

_LOOK = 0.1  # seconds between two looks at the processes,
_COUNT = 2.0  # between two looks at how far they are,
_AGAIN = 5.0  # and before a trial is tried again that another process runs.


@dataclasses.dataclass(frozen=True)
class _Running:
    trial: Trial
    job: Job


def run(
    trials: Sequence[Trial],
    workdir: pathlib.Path,
    *,
    jobs: int,
    launcher: Launcher,
    work: Mapping[str, float],
    command: str,
    quiet: bool,
) -> dict[str, str]:
    """Runs `trials` in folders of `workdir` named by their digests, those of most `work` first.

    Finished ones are left alone, others go on where they stopped. Returns the error of each that failed, by digest.
    On SIGTERM or SIGINT every trial is told to save, waited for, and KeyboardInterrupt is raised.
    """
    state = _Pool(list(trials), workdir, work, command)
    total = sum(work.values())
    with SweepProgress(total, quiet=quiet) as progress, stopping.collected() as stop:
        while state.waiting or state.running:
            if stop.requested:
                progress.say(f"{stop.requested}: the trials under way save and leave.")
                state.stop()
                raise KeyboardInterrupt
            state.fill(jobs, launcher)
            for line in state.collect():
                progress.say(line)
            if state.due():
                progress.update(state.done(), state.counts())
            time.sleep(_LOOK)
    return state.failed


class _Pool:
    """The trials and the state of each."""

    def __init__(self, trials: list[Trial], workdir: pathlib.Path, work: Mapping[str, float], command: str):
        self.trials, self.workdir, self.work, self.command = trials, workdir, work, command
        rest = [trial for trial in trials if not process.finished(workdir / trial.digest)]
        self.waiting = sorted(rest, key=lambda trial: -work[trial.digest])
        self.running: dict[int, _Running] = {}
        self.failed: dict[str, str] = {}
        self._not_before: dict[str, float] = {}
        self._counted = 0.0
        for trial in trials:
            if process.finished(workdir / trial.digest):
                self._note(trial)

    def _note(self, trial: Trial) -> None:
        """Writes the config of a trial, unless its folder says the same: settings of generation may be others now."""
        folder, config = self.workdir / trial.digest, trial.config.to_dict()
        record = files.read_json(folder / files.CONFIG) or {}
        if record.get("config") != files.plain(config):
            files.write_config(folder, config, record.get("command", self.command), keys.base())

    def fill(self, jobs: int, launcher: Launcher) -> None:
        """Starts a trial in every slot that is free."""
        for slot in sorted(set(range(jobs)) - set(self.running)):
            now = time.monotonic()
            trial = next((t for t in self.waiting if self._not_before.get(t.digest, 0.0) <= now), None)
            if trial is None:
                return
            self.waiting.remove(trial)
            folder = self.workdir / trial.digest
            if process.finished(folder):  # By another sweep on this folder, in the meantime.
                continue
            self._note(trial)
            self.running[slot] = _Running(trial, launcher.start(folder, slot))

    def collect(self) -> list[str]:
        """Takes note of trials that ended; returns a line for each."""
        lines = []
        for slot, (trial, code) in {s: (r.trial, r.job.poll()) for s, r in self.running.items()}.items():
            if code is None:
                continue
            del self.running[slot]
            folder = self.workdir / trial.digest
            if code == process.LOCKED:
                if trial.digest not in self._not_before:
                    lines.append(f"{trial.name}: another process runs it; waiting for that.")
                self._not_before[trial.digest] = time.monotonic() + _AGAIN
                self.waiting.append(trial)
            elif process.finished(folder):
                lines.append(f"{trial.name}: {_outcome(folder)}")
            else:
                told = process.error(folder, code) if code else "stopped from outside; the same command goes on with it"
                self.failed[trial.digest] = told
                lines.append(f"{trial.name}: failed: {told}")
        return lines

    def stop(self) -> None:
        """Tells every trial under way to save and leave, and waits until they have."""
        for running in self.running.values():
            running.job.stop()
        while any(running.job.poll() is None for running in self.running.values()):
            time.sleep(_LOOK)

    def due(self) -> bool:
        """Whether it is time to read the progress of the trials again."""
        now = time.monotonic()
        if now - self._counted < _COUNT:
            return False
        self._counted = now
        return True

    def done(self) -> float:
        """FLOPs of finished trials, and of those under way by their last line of metrics."""
        running = {r.trial.digest for r in self.running.values()}
        total = 0.0
        for trial in self.trials:
            folder = self.workdir / trial.digest
            if process.finished(folder):
                total += self.work[trial.digest]
            elif trial.digest in running:
                lines, _ = files.read_lines(folder / files.METRICS)
                step = max((line["step"] for line in lines), default=0)
                total += self.work[trial.digest] * step / trial.config.train.steps
        return total

    def counts(self) -> dict[str, int]:
        """How many trials there are in each state."""
        all_, running, failed = len(self.trials), len(self.running), len(self.failed)
        finished = all_ - running - failed - len(self.waiting)
        return {"all": all_, "running": running, "failed": failed, "finished": finished}


def _outcome(folder: pathlib.Path) -> str:
    result = files.read_json(folder / files.RESULT) or {}
    if "eval/bits_per_byte" not in result:
        return f"{result.get('step')} steps, not evaluated"
    return f"bits per byte {result.get('eval/kind', '=')} {result['eval/bits_per_byte']:.4f}"
