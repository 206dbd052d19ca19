"""Tessera: one JAX platform on which any idea about tokens is one line of a config.

python main.py --config=configs/quickstart.py --workdir=runs/quickstart
python main.py --config=configs/transformer.py:tiny --config.model.num_layers=4 --mode=plan
python main.py --mode=generate --workdir=runs/quickstart --prompt="def main("
"""

import difflib
import functools
import logging as stdlib_logging
import os
import re
import sys
import traceback

from absl import app, flags, logging

from experiments.settings import overrides, processes, visible

MODES = {
    "train": "train --config in --workdir, or go on where it stopped; ends with a report",
    "plan": "print parameters, shardings, FLOPs and memory of --config; train nothing",
    "evaluate": "held-out likelihood of the newest checkpoint in --workdir",
    "generate": "continue --prompt, or each line of --prompts, with the model in --workdir",
    "serve": "put the model in --workdir behind HTTP, as OpenAI's interface has it",
    "export": "write the parameters in --workdir to --workdir/model.safetensors",
    "report": "rebuild report.html in --workdir, or compare --runs",
    "sweep": "run every trial of the sweep --config, then its table, comparison and fit",
    "claim": "re-test the claim --config of a paper and write its row to --workdir/claim.json",
    "ledger": "rewrite pages of docs/claims and counts of docs/LEDGER.md, after adding --runs",
    "list": "print presets, sweeps and claims, or what --filter finds of them and of settings",
    "tokenize": "learn the tokenizers that --filter names (all), compare them on the corpus",
    "bench": "time this machine's kernels, training step, decoder and data path",
}

flags.DEFINE_string("config", None, "The experiment, FILE.py or FILE.py:PRESET; without it that of --workdir.")
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, report; a run found there goes on.")
flags.DEFINE_enum("mode", "train", list(MODES), "What to do; see above.")
flags.DEFINE_bool("smoke", False, "Shrink the config to a run of seconds that touches every part it names.")
flags.DEFINE_bool("overwrite", False, "train: move a run that is in --workdir aside, and begin anew.")
flags.DEFINE_string("step", "", "evaluate, generate, export: which checkpoint, a number or best.")
flags.DEFINE_enum(
    "format",
    "safetensors",
    ["safetensors", "hf", "gguf"],
    "export: safetensors, hf (a folder for transformers) or gguf (for llama.cpp).",
)
flags.DEFINE_string("prompt", None, "generate: the text to continue.")
flags.DEFINE_string("prompts", None, "generate: a file with one prompt a line; blank lines are skipped.")
flags.DEFINE_string("output", "", "generate: a JSONL file for the texts of --prompts; what stands in it is kept.")
flags.DEFINE_integer("port", 8000, "serve: where it listens; 0 takes any that is free.")
flags.DEFINE_string("host", "127.0.0.1", "serve: an address beyond this machine, e.g. 0.0.0.0, lets others in.")
flags.DEFINE_integer("lanes", 0, "serve: texts under way together; 0 takes generate.engine.lanes.")
flags.DEFINE_string("runs", None, "report, ledger: workdirs to compare or to add, between commas.")
flags.DEFINE_string("bench_filter", "", "bench: run only rows whose name contains this text.")
flags.DEFINE_boolean("tune", False, "bench: search the tiles of the rows' kernels, and keep what is faster here.")
flags.DEFINE_string("filter", "", "list: words that must stand in what is shown, or a setting; tokenize: names.")
flags.DEFINE_string("topology", "", "plan: compile for v5e:4x4, v5p:4x4x4, h100:8, cpu:8; bench: for v5e, v6e.")
flags.DEFINE_integer("jobs", 1, "sweep, claim: runs at a time, each on its own share of the cores.")
flags.DEFINE_integer("first_seed", 0, "claim: added to every seed: the same claim once more, by other seeds.")
flags.DEFINE_enum("launcher", "local", ["local", "ray", "slurm"], "sweep: where runs go: local, ray or slurm.")
flags.DEFINE_integer("simulate", 0, "Pretend that this CPU is so many devices; 0 takes what is here.")
flags.DEFINE_string("coordinator", "", "One of many processes: HOST:PORT of process 0. TPU and SLURM need no flag.")
flags.DEFINE_integer("num_processes", 0, "One of many processes: how many there are.")
flags.DEFINE_integer("process_id", -1, "One of many processes: which one this is, from 0.")
FLAGS = flags.FLAGS
KNOWN = (
    "config", "workdir", "mode", "smoke", "overwrite", "step", "format", "prompt", "prompts", "output", "runs",
    "jobs", "launcher", "bench_filter", "filter", "topology", "simulate", "coordinator", "num_processes", "process_id",
    "port", "host", "lanes", "tune", "first_seed",
)  # fmt: skip
SIMULATED = ("cpu", "a100", "h100", "h200")  # Topologies of CPU devices, before jax may be imported.
SWITCHES = ("smoke", "overwrite", "tune")
NUMBERS = {"port": 8000, "lanes": 8, "simulate": 8, "jobs": 2, "num_processes": 2, "process_id": 0, "first_seed": 100}


def usage() -> str:
    """What `--help` prints: one screen."""
    modes = [f"  --mode={name:<9} {text}." for name, text in MODES.items()]
    # absl puts the choices of a flag before its sentence; those of --mode stand above.
    described = {f"--{name}": re.sub(r"^<.*?>: ", "", FLAGS[name].help) for name in KNOWN}
    described["--config.KEY=VALUE"] = "Change one setting, e.g. --config.train.steps=500; docs/knobs.md lists all."
    rows = [f"  {name:<18} {text}" for name, text in described.items()]
    return "\n".join(
        [__doc__.strip().replace("\n\n", "\n"), "Modes (the first is the default):", *modes, "Flags:", *rows]
    )


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with a help of one screen and one sentence instead of a traceback."""
    if {"--help", "-help", "-h", "--helpshort", "-helpshort"} & set(argv[1:]):
        print(usage())
        sys.exit(0)
    try:
        return FLAGS(argv)
    except flags.Error as error:
        fail(_explain(argv[1:], error))


def _explain(arguments: list[str], error: flags.Error) -> str:
    """One sentence for a flag that absl refuses."""
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(error.flagname, KNOWN, n=1, cutoff=0.5)
        given = next((a for a in arguments if a.lstrip("-").partition("=")[0] == error.flagname), f"--{error.flagname}")
        value = given.partition("=")
        hint = f"did you mean --{near[0]}{value[1]}{value[2]}?" if near else "python main.py --help lists all."
        if key := overrides.meant(error.flagname):
            hint = f"settings begin with --config: --config.{key}{value[1]}{value[2]}."
        return f"{given} is not a flag; {hint}"
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "mode" and value not in MODES:
            near = difflib.get_close_matches(value, MODES, n=1, cutoff=0.5)
            hint = f"did you mean --mode={near[0]}? " if near else ""
            return f"--mode={value} is not a mode; {hint}choose one of: {', '.join(MODES)}."
        if name.removeprefix("no") in (*NUMBERS, *SWITCHES) and f"--{name}={value}" in str(error):
            kind = f"a whole number, e.g. --{name}={NUMBERS[name]}" if name in NUMBERS else "true or false"
            return f"--{name}={value} must be {kind}."
    return f"{' '.join(str(error).split())}; python main.py --help lists all flags."


def fail(message: str) -> None:
    """Says what is wrong and leaves with exit code 2."""
    for line in message.encode("utf-8", "backslashreplace").decode().split("\n"):
        shown = visible.visible(line)  # Names of files and values may hold what moves a cursor or reorders a line.
        print(shown if shown.startswith(" ") else f"error: {shown}", file=sys.stderr)
    processes.leave(2)


def main(argv: list[str], changes: list[overrides.Override]) -> None:
    """Runs one mode; every expected problem ends as a sentence."""
    if sys.platform == "win32":
        fail("Windows has not the locks and signals that a run needs; start it in WSL2 (wsl --install), as on Linux.")
    words = argv[1:]
    if words:
        hint = f"--mode={words[0]}" if words[0] in MODES else f"--{words[0].lstrip('-')}"
        fail(f"{words[0]!r} is not a flag; did you mean {hint}?")
    kind, _, count = FLAGS.topology.partition(":")
    if FLAGS.mode == "plan" and kind in SIMULATED and count.isdigit():
        FLAGS.simulate = int(count)
    if not 0 <= FLAGS.simulate <= 1024:
        fail(f"--simulate={FLAGS.simulate} must be from 0 to 1024 devices, e.g. --simulate=8.")
    if FLAGS.simulate:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={FLAGS.simulate} "
            # They share the cores: on a busy machine one may keep the others waiting for longer than XLA bears (40 s).
            "--xla_cpu_collective_call_terminate_timeout_seconds=600"
        )
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(stdlib_logging.Formatter("warning: %(message)s"))  # No file, no thread.
    for stream in (sys.stdout, sys.stderr):  # A terminal that cannot show a character shows its number.
        stream.reconfigure(errors="backslashreplace")
    from experiments import modes
    from experiments.settings import errors

    sys.unraisablehook = errors.unraisable
    try:
        modes.run(FLAGS, changes)
    except BrokenPipeError:  # Whoever reads has seen enough; the program ends below.
        raise
    except KeyboardInterrupt:
        print("\nstopped; the same command starts or goes on from the last checkpoint.", file=sys.stderr)
        os._exit(130)
    except SystemExit:  # No mode ends the program: code of a config did, when its values were looked at.
        fail(f"--config={FLAGS.config} holds values whose code ends the program; correct the file.")
    except Exception as error:
        message = processes.sentence(error) or errors.sentence(error)
        if not message and processes.many():  # The others would wait for this one to come to its end.
            traceback.print_exc()
            processes.leave(1)
        if not message:
            raise
        fail(message)


if __name__ == "__main__":
    CHANGES, REST = overrides.split(sys.argv[1:])
    try:
        app.run(functools.partial(main, changes=CHANGES), [sys.argv[0], *REST], flags_parser=parse)
    except BrokenPipeError:  # `python main.py --help | head`
        os._exit(0)
