"""``der-tf reproduce``: an experiment of many runs, from its table of settings to its results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from der_tf.cli.console import (
    Count,
    Debug,
    Whole,
    attack_progress,
    find_dataset,
    load_tensorflow,
    preparing,
    say,
)
from der_tf.cli.train import prepared, trained
from der_tf.files import write_text
from der_tf.reproduce.experiments import EXPERIMENTS, Experiment, Row, Scale
from der_tf.reproduce.results import Run, planned, write_report
from der_tf.reproduce.summary import markdown
from der_tf.training.faults import Diverged, Signals, writing
from der_tf.training.recipes import arguments


def reproduce(
    experiment: Annotated[
        Literal["catastrophic-overfitting", "robust-overfitting", "der-ablation"],
        Parameter(help="Which question to answer."),
    ],
    /,
    *,
    scale: Annotated[
        Literal["tiny", "small", "full"],
        Parameter(
            help="tiny: about a minute a run on a free core; small: ten to thirty; full: the "
            "setting of the papers, for accelerators. Default: small.",
            show_default=False,
        ),
    ] = "small",
    data_dir: Annotated[
        Path | None, Parameter(help="Where CIFAR-10 lies. Default: that of TFDS.")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(help="Folder of the runs and results. Default: runs/EXPERIMENT-SCALE."),
    ] = None,
    seeds: Annotated[
        Count | None, Parameter(help="Runs of each row. Default: the scale's: 3, ablation 1.")
    ] = None,
    only: Annotated[
        str | None,
        Parameter(help="Rows with commas between, also with *: none-16,der*-16. Default: all."),
    ] = None,
    test_images: Annotated[
        Count | None,
        Parameter(
            help="Test images that get PGD. Default: the scale's: 500, small 1,000, full all."
        ),
    ] = None,
    auto_attack_images: Annotated[
        Whole | None,
        Parameter(help="Test images that get AutoAttack. Default: the scale's: 0, full 1,000."),
    ] = None,
    list_rows: Annotated[
        bool,
        Parameter(
            name="--list",
            help="Show the rows as commands and train nothing. Default: no.",
            negative="",
            show_default=False,
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Does DER cure catastrophic and robust overfitting? Train, measure, and write the tables.

    Each run has a folder in --out. The same command goes on where it was stopped: finished runs
    are not repeated, new seeds and rows are added. At the end, and after each run, results.json
    and results.md hold the means and standard deviations over the seeds.
    """
    chosen = EXPERIMENTS[experiment]
    asked: dict[str, Any] = {"test_images": test_images, "auto_attack_images": auto_attack_images}
    size = dataclasses.replace(
        chosen.scales[scale],
        **{name: images for name, images in asked.items() if images is not None},
    )
    with preparing():
        rows = chosen.rows(size, [name for name in (only or "").split(",") if name])
        if list_rows:
            for row in rows:
                say(f"{row.name}: der-tf train {' '.join(arguments(row.options))}")
            return
    run_experiment(
        chosen,
        size,
        rows,
        seeds=seeds or size.seeds,
        out=out or Path("runs") / f"{experiment}-{scale}",
        data_dir=str(data_dir) if data_dir else None,
        debug=debug,
    )


def run_experiment(
    experiment: Experiment,
    scale: Scale,
    rows: list[Row],
    *,
    seeds: int,
    out: Path,
    data_dir: str | None = None,
    debug: bool = False,
) -> None:
    """Train and measure what is left of the rows, and write results.json and results.md.

    Args:
        experiment: where the rows come from.
        scale: likewise.
        rows: what to train.
        seeds: runs of each, of seeds 0, 1, ...
        out: folder of the runs.
        data_dir: where the data set lies.
        debug: let TensorFlow's messages through.
    """
    with Signals() as signals:
        with preparing():
            # Seed by seed: when the time is over, each row has about as many.
            plan = [planned(row, seed, out, data_dir) for seed in range(seeds) for row in rows]
            left = [run for run in plan if run.result(scale) is None]
            for dataset in {run.config.dataset for run in left}:
                find_dataset(dataset, data_dir, debug)
            out.mkdir(parents=True, exist_ok=True)
            report = write_report(experiment, scale, out)
        say(f"{experiment.question}\n{len(plan)} runs, {len(plan) - len(left)} of them finished")
        if left:
            say("Loading TensorFlow ...")
            load_tensorflow(debug)
        began = time.monotonic()
        for index, run in enumerate(left):
            text = f"Run {index + 1} of {len(left)}: {run.title}"
            if index:
                # Nobody knows how long a cure takes before it was tried: as long as the others.
                seconds = (time.monotonic() - began) / index * (len(left) - index)
                text += f", about {seconds / 60:.0f} min left in all"
            say(text)
            result = _result(run, scale, signals)
            with writing(out):
                write_text(run.path, json.dumps(result) + "\n")
                report = write_report(experiment, scale, out)
    say(f"\n{markdown(report)}\nWritten to {out / 'results.json'} and {out / 'results.md'}")


def _result(run: Run, scale: Scale, signals: Signals) -> dict[str, Any]:
    """Train and measure one run."""
    import keras

    from der_tf.reproduce import measuring

    keras.backend.clear_session()
    command = ["train", *arguments(run.row.options), f"--seed={run.seed}"]
    try:
        with contextlib.ExitStack() as held:
            with preparing():
                held.enter_context(run.directory.held())
            dataset, model = prepared(run.config, run.directory.last.exists())
            trained(
                run.config,
                run.directory,
                run.directory,
                signals,
                dataset,
                model,
                checkpoint_minutes=10.0,
                arguments=command,
                go_on="the same command",
            )
    except Diverged as error:
        say(f"{run.title} diverged: {error}")
        return measuring.diverged(run, scale, str(error))
    say(f"Measuring {run.title} on test images ...")
    with attack_progress(scale.test_images or dataset.test_size) as progress:
        return measuring.measure(run, dataset, scale, progress)
