"""``der-tf analyze``: figures and one HTML report about one or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from der_tf.cli.console import (
    Count,
    Debug,
    Seed,
    attack_progress,
    load_tensorflow,
    preparing,
    say,
)
from der_tf.training.faults import Signals, writing

if TYPE_CHECKING:
    import numpy as np

    from der_tf.analysis import Run
    from der_tf.evaluation.loading import Classifier

NUM_EXAMPLES = 500


def analyze(
    runs: Annotated[
        list[Path],
        Parameter(help="Run directories, up to 7, of one data set.", negative=""),
    ],
    /,
    *,
    epochs: Annotated[
        str | None,
        Parameter(
            help="Whose samples to draw, with commas between, such as 1,5,30. Default: the first, "
            "the middle, the best and the last one.",
        ),
    ] = None,
    num_examples: Annotated[
        Count | None,
        Parameter(
            help="Validation images to attack, drawn by the seed. Default: 500, or all if there "
            "are fewer."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, Parameter(help="Where the data set lies. Default: where it lay for training.")
    ] = None,
    seed: Annotated[
        Seed,
        Parameter(
            help="Of --num-examples, random starts and directions. Default: 0.", show_default=False
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder that gets report.html and the figures. Default: RUN/figures/analysis, for "
            "several runs runs/analysis."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show runs side by side: energies over training, overfitting, loss landscapes, attacks.

    Writes PNG figures and report.html, which holds them all and needs nothing else. The runs may
    still be training. Only validation images are attacked; test numbers are those of
    evaluation.json.
    """
    with Signals():
        with preparing():
            wanted = _epochs(epochs)
        say("Loading TensorFlow ...")
        load_tensorflow(debug)
        from der_tf.analysis import read_runs, report, sections

        with preparing():
            found = read_runs(runs)
            _check_epochs(wanted, found)
            networks = _networks(found)
            attacked = None  # the images, unless no run has its networks here
            if any(networks.values()):
                attacked = _validation_images(found, networks, data_dir, num_examples, seed)
        place = out or (
            found[0].directory.figures / "analysis" if len(runs) == 1 else Path("runs/analysis")
        )
        say("Drawing energies over the epochs and of single samples ...")
        written = [
            *sections.over_epochs(found, place),
            sections.samples(found, wanted, place),
        ]
        if attacked is not None:
            images, labels = attacked
            measured = sections.Measured(
                runs=found,
                networks=networks,
                images=images,
                labels=labels,
                seed=seed,
                place=place,
                say=say,
            )
            written += [
                sections.landscapes(measured),
                sections.steps(measured),
                sections.energies(measured, attack_progress),
            ]
        with writing(place / "report.html"):
            report.write_report(place / "report.html", found, written)
        for run in found:
            say(f"{run.name}: {run.verdict()}")
        say(f"Written to {place / 'report.html'}")


def _epochs(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--epochs takes numbers from 1 with commas between; received {text!r}")
    return sorted({int(part) for part in parts})


def _check_epochs(wanted: list[int] | None, runs: Sequence[Run]) -> None:
    there = sorted({epoch for run in runs for epoch in run.samples})
    for epoch in wanted or ():
        if epoch not in there:
            kept = f"those of epochs {', '.join(map(str, there))}" if there else "none"
            raise ValueError(
                f"--epochs names epochs whose single samples a run has kept; received {epoch}, "
                f"there are {kept}"
            )


def _networks(runs: Sequence[Run]) -> dict[str, dict[str, Classifier]]:
    """Of each run its best network, and the last where that is another, by what to call them.

    None of a run whose files were brought here without its networks.
    """
    from der_tf.evaluation.loading import load_classifier

    found: dict[str, dict[str, Classifier]] = {}
    for run in runs:
        directory, last = run.directory, len(run.epochs) - 1
        if not directory.best.exists():
            found[run.name] = {}
            continue
        say(f"{run.name}: loading its networks ...")
        found[run.name] = {f"best, epoch {run.epochs[run.best]}": load_classifier(directory.best)}
        if directory.last.exists() and run.best != last:
            found[run.name][f"last, epoch {run.epochs[last]}"] = load_classifier(directory.last)
    return found


def _validation_images(
    runs: Sequence[Run],
    networks: Mapping[str, Mapping[str, Classifier]],
    data_dir: Path | None,
    num_examples: int | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels drawn by the seed from the validation images that the runs share.

    Raises:
        ValueError: when there are fewer, or a network takes other images.
    """
    import numpy as np

    from der_tf.analysis import shared_split

    say(f"Reading {runs[0].config.dataset} ...")
    dataset = shared_split(runs, data_dir)
    for of_run in networks.values():
        for network in of_run.values():
            network.check_images(dataset.name, dataset.input_shape)
    there = dataset.validation_size
    if num_examples is not None and num_examples > there:
        raise ValueError(
            f"{there} images of {dataset.name} are validation images of every run given; received "
            f"--num-examples {num_examples}"
        )
    images, labels = (
        np.concatenate(parts) for parts in zip(*dataset.validation.as_numpy_iterator(), strict=True)
    )
    count = num_examples or min(NUM_EXAMPLES, there)
    chosen = np.random.default_rng(seed).choice(there, count, replace=False)
    return images[chosen], labels[chosen].astype(np.int32)
