"""Tessera: one JAX platform on which any idea about tokens is one line of a config.

python main.py --config=configs/quickstart.py --workdir=runs/quickstart
python main.py --config=configs/transformer.py:tiny --config.model.num_layers=4 --mode=plan
python main.py --mode=generate --workdir=runs/quickstart --prompt="def main("
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

MODES = {
    "train": "train --config in --workdir, or go on where it stopped",
    "evaluate": "held-out likelihood of the newest checkpoint in --workdir",
    "generate": "continue --prompt (or each line of --prompts) with the model in --workdir",
    "export": "write the parameters in --workdir to --workdir/model.safetensors",
    "plan": "print parameters, shardings, FLOPs and memory of --config; train nothing",
    "report": "rebuild report.html in --workdir, or compare --runs",
    "bench": "time this machine's kernels, training step, decoder and data path",
}

config_flags.DEFINE_config_file(
    "config", None, "The experiment: FILE.py or FILE.py:preset; --config.KEY=VALUE overrides."
)
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, report. Resumes when it holds one.")
flags.DEFINE_enum("mode", "train", list(MODES), "What to do: " + "; ".join(f"{k}: {v}" for k, v in MODES.items()) + ".")
flags.DEFINE_bool("smoke", False, "Shrink the config to a run of seconds that touches every part it names.")
flags.DEFINE_string("prompt", None, "generate: the text to continue.")
flags.DEFINE_string("prompts", None, "generate: a file with one prompt a line.")
flags.DEFINE_string("runs", None, "report: workdirs to compare, separated by commas; --workdir receives the page.")
flags.DEFINE_string("bench_filter", "", "bench: run only rows whose name contains this text.")
flags.DEFINE_string("topology", "", "bench: compile for this TPU (v5e, v5p, v6e) that is not here; time nothing.")
flags.DEFINE_integer("simulate", 0, "Pretend that this CPU is so many devices (0 = what is here).")
FLAGS = flags.FLAGS


def parse(argv: list[str]) -> list[str]:
    """absl's parser with one sentence instead of a traceback."""
    try:
        return FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        from experiments import overrides

        fail(overrides.explain(argv[1:], error))


def fail(message: str) -> None:
    """Says what is wrong and leaves with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main(argv: list[str]) -> None:
    """Runs one mode; every expected problem ends as a sentence."""
    if len(argv) > 1:
        fail(f"{argv[1]!r} is not a flag; did you mean --{argv[1].lstrip('-')}?")
    if FLAGS.simulate:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={FLAGS.simulate}"
        )
    logging.set_verbosity(logging.WARNING)
    from experiments import modes

    try:
        modes.run(FLAGS)
    except modes.EXPECTED as error:
        fail(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
