"""The command line of the experiments: ``python -m bnkit.experiments``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from bnkit.experiments import EXPERIMENTS, load, question

DESCRIPTION = "Run the experiments of the book: batch normalization measured, on Fashion-MNIST."
STRATEGIES = ["mirrored", "multi-worker", "jax"]
EPILOG = """\
examples:
  python -m bnkit.experiments list
  python -m bnkit.experiments run learning-rate                  about a minute on a laptop
  python -m bnkit.experiments run learning-rate --preset full --output results
  python -m bnkit.experiments run learning-rate --preset full --output results --resume

A run writes NAME.json after each seed. Stop it with Ctrl-C, or kill it: what is finished is in the
file, and --resume goes on from there. In Python, bnkit.experiments.run does the same, and
bnkit.experiments.load(NAME).plot(result) draws the figure.

A GPU is used where the backend finds one. KERAS_BACKEND=jax chooses Keras's JAX backend: there many
experiments train all their seeds side by side, which a GPU has room for (make record-gpu). With
KERAS_BACKEND=torch those run that train by bnkit.experiments.training.Trainer alone, step by step.

Several devices share each batch with --strategy, and batch normalization takes the statistics of
all of it: mirrored is for the GPUs of one machine on TensorFlow, jax for those on JAX, multi-worker
for several processes on TensorFlow, each started by the same command and with its own TF_CONFIG, of
which the first writes the file. Placement can be spread. The others say that they cannot: they
measure their nets, or draw random numbers, in ways that need a single device.
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command and its options."""
    parser = argparse.ArgumentParser(
        prog="python -m bnkit.experiments",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | run NAME")
    commands.add_parser("list", help="name the experiments, with their questions")
    run = commands.add_parser("run", help="run one; `run --help` tells how")
    run.add_argument("name", metavar="NAME", help=f"one of: {', '.join(EXPERIMENTS)}")
    run.add_argument(
        "--preset",
        choices=["quick", "full"],
        default="quick",
        help="quick: a minute or less; full: what the book shows (default: quick)",
    )
    run.add_argument(
        "--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default: the preset's)"
    )
    run.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for NAME.json (default: _build/experiments/PRESET)",
    )
    run.add_argument(
        "--data",
        choices=["fashion-mnist", "mnist", "cifar10"],
        help="train on these images, where the experiment can (default: the preset's)",
    )
    run.add_argument("--resume", action="store_true", help="go on with a file that is there")
    run.add_argument(
        "--mixed-precision",
        action="store_true",
        help="compute in bfloat16, keep weights in float32: faster on recent GPUs only",
    )
    run.add_argument(
        "--strategy",
        choices=["none", *STRATEGIES],
        default="none",
        help="share each batch among several devices (default: none); see the end of `--help`",
    )
    return parser.parse_args(arguments)


def show_list() -> None:
    """Print each experiment's name and question."""
    width = max(map(len, EXPERIMENTS))
    for name in EXPERIMENTS:
        print(f"{name:{width}}  {question(name)}")


def run(options: argparse.Namespace, command: str) -> int:
    """Run one experiment; the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from bnkit.experiments import runner

    if options.mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")
    folder = options.output or Path("_build", "experiments", options.preset)
    path = folder / f"{options.name}.json"
    try:
        result = runner.run(
            options.name,
            options.preset,
            seeds=options.seeds,
            path=path,
            resume=options.resume,
            command=command,
            strategy=options.strategy,
            **changes(options),
        )
    except KeyboardInterrupt:
        kept = f"finished seeds are in {path}; go on with --resume" if path.exists() else "no seed"
        print(f"\nStopped: {kept}.", file=sys.stderr)
        return 130
    written = path if path.exists() else "left to the first worker"
    device = result.provenance["device"]
    print(f"{written}: {len(result.runs)} seeds, {result.seconds:.0f} s on {device}")
    return 0


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """What the options change in the preset: the data, a name or a list of names."""
    if options.data is None:
        return {}
    usual = getattr(load(options.name).PRESETS[options.preset], "data", "")
    return {"data": (options.data,) if isinstance(usual, tuple) else options.data}


def reproducing(arguments: list[str]) -> list[str]:
    """The arguments that decide what is measured: not where the file goes, nor whether it grows.

    >>> reproducing(["run", "depth", "--output", "here", "--resume", "--seeds", "2"])
    ['run', 'depth', '--seeds', '2']
    """
    kept = [each for each in arguments if each != "--resume" and not each.startswith("--output=")]
    if "--output" in kept:
        place = kept.index("--output")
        del kept[place : place + 2]
    return kept


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    try:
        if options.command == "list":
            show_list()
            return 0
        question(options.name)  # a wrong name is told before Keras is loaded
        return run(options, shlex.join(["python", "-m", "bnkit.experiments", *reproducing(given)]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
