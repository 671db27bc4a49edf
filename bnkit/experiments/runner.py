"""Runs an experiment seed by seed, and keeps what is finished.

After each seed the whole file is written anew, so that a run that is stopped, in whatever way,
loses at most the seed that it was at.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from bnkit.experiments import EXPERIMENTS, devices, load, results
from bnkit.experiments.results import Result, Run

bar = partial(tqdm, leave=False, dynamic_ncols=True)  # for the steps within a seed


def run(
    name: str,
    preset: str = "quick",
    *,
    seeds: int | Iterable[int] | None = None,
    path: Path | None = None,
    resume: bool = False,
    command: str = "",
    strategy: str = "none",
    **changes: Any,
) -> Result:
    """Run an experiment with each of its seeds.

    Args:
        name: a key of ``bnkit.experiments.EXPERIMENTS``.
        preset: a key of the experiment's ``PRESETS``.
        seeds: how many (0, 1, 2, …), or which; as many as the config says when None.
        path: file that is written after each seed; none when None. Of several workers, only the
            first writes it.
        resume: go on with the seeds that the file does not have.
        command: what to type to run it again, for the provenance.
        strategy: how to spread the batches over several devices, see ``bnkit.experiments.devices``.
        changes: fields of the experiment's ``Config`` that differ from the preset's.

    Returns:
        The result, with one record for each seed.

    Raises:
        ValueError: no such experiment, preset or field; a file that cannot be resumed; a strategy
            that there is not, or that the experiment cannot use.
        FileExistsError: the file is there, and `resume` was not asked for.
    """
    experiment = load(name)
    if preset not in experiment.PRESETS:
        raise ValueError(f"{name} has no preset {preset!r}; it has {', '.join(experiment.PRESETS)}")
    try:
        config = replace(experiment.PRESETS[preset], **changes)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    wanted = list(range(seeds) if isinstance(seeds, int) else seeds or range(config.seeds))
    if not wanted:
        raise ValueError("seeds must name at least one, got none")

    import keras

    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of each net it compiles
    command = command or f"python -m bnkit.experiments run {name} --preset {preset}"
    if not devices.is_chief(strategy):
        path = None
    spread = _devices(experiment, name, strategy, resume)
    started = results.provenance(command, spread.name)
    result = Result(name, preset, results.plain(asdict(config)), started)
    if path is not None and path.exists():
        result = _resumed(result, path, resume)
    missing = [seed for seed in wanted if seed not in result.seeds]
    if hasattr(experiment, "run_seeds") and keras.backend.backend() == "jax":
        groups = [missing] if missing else []  # side by side, which a GPU has room for
    else:
        groups = [[seed] for seed in missing]
    with tqdm(desc=f"{name}, {preset}", unit="seed", total=len(missing)) as progress:
        for group in groups:
            for run in _run_group(experiment, config, group, spread):
                result = result.with_run(run)
            if path is not None:
                result.save(path)
            progress.update(len(group))
    return result


def _devices(experiment: Any, name: str, strategy: str, resume: bool) -> devices.Devices:
    """The devices of the strategy, if the experiment can be spread over them."""
    if strategy != "none" and not getattr(experiment, "DISTRIBUTED", False):
        able = [each for each in EXPERIMENTS if getattr(load(each), "DISTRIBUTED", False)]
        raise ValueError(
            f"{name} measures its nets, or draws random numbers, in ways that need a single "
            f"device; strategy {strategy!r} works with: {', '.join(able)}"
        )
    if strategy == "multi-worker" and resume:
        raise ValueError("resume does not work with multi-worker: only the first has the file")
    return devices.find(strategy)


def _run_group(
    experiment: Any, config: Any, seeds: list[int], spread: devices.Devices
) -> list[Run]:
    """Seeds side by side, or a single one, begun as a fresh process begins.

    The precision stays as it was asked for. Of seeds side by side each gets its share of the time.
    """
    import keras

    precision = keras.config.dtype_policy()
    keras.utils.clear_session()  # which forgets the precision, and in what scope it was called
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seeds[0])
    start = perf_counter()
    with spread.scope():
        if len(seeds) == 1:
            records = [experiment.run_seed(config, seeds[0])]
        else:
            records = experiment.run_seeds(config, seeds)
    seconds = round((perf_counter() - start) / len(seeds), 2)
    return [
        Run(seed, seconds, results.plain(record))
        for seed, record in zip(seeds, records, strict=True)
    ]


def _resumed(new: Result, path: Path, resume: bool) -> Result:
    """What the file holds, if its seeds and those of the new result may stand in one file."""
    if not resume:
        raise FileExistsError(f"{path} is there already: resume it, delete it, or write elsewhere")
    old = results.read(path)
    for what, before, now in [
        ("experiment", old.experiment, new.experiment),
        ("preset", old.preset, new.preset),
        *_pairs(old.config, new.config, without="seeds"),
        *[
            (key, old.provenance[key], new.provenance[key])
            for key in ("device", "cores", "backend", "precision", "strategy", "versions")
        ],
    ]:
        if before != now:
            raise ValueError(
                f"{path} cannot be resumed: its {what} is {before!r}, this run's is {now!r}"
            )
    return replace(old, config=new.config)


def _pairs(old: dict[str, Any], new: dict[str, Any], without: str) -> list[tuple[str, Any, Any]]:
    keys = sorted((old.keys() | new.keys()) - {without})
    return [(key, old.get(key), new.get(key)) for key in keys]
