"""``der-tf generate``: images of wanted classes from a trained classifier."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from der_tf.cli.console import (
    Count,
    Debug,
    NotNegative,
    Share,
    Whole,
    load_tensorflow,
    preparing,
    say,
)
from der_tf.training.faults import Interrupted, Signals, writing

if TYPE_CHECKING:
    from der_tf.evaluation.loading import Classifier
    from der_tf.generation import LangevinSampler, LocalClasswisePCA
    from der_tf.generation.collection import Collection

TRACED = 4  # chains of a class that are drawn step by step
COLUMNS = 10  # samples of a class in the grid


def generate(
    run_or_model: Annotated[
        Path,
        Parameter(
            help="A run directory (its best.keras), a .keras file, or a SavedModel, NAME or "
            "NAME/VERSION."
        ),
    ],
    /,
    *,
    classes: Annotated[
        str | None,
        Parameter(help="Names or numbers with commas between. Default: all classes."),
    ] = None,
    num: Annotated[
        Count, Parameter(help="Images of each class. Default: 10.", show_default=False)
    ] = 10,
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder that gets everything; what it already holds of the same command is kept. "
            "Default: RUN/samples, for a model runs/samples/NAME."
        ),
    ] = None,
    steps: Annotated[
        Whole, Parameter(help="Most steps of a chain. Default: 50.", show_default=False)
    ] = 50,
    step_size: Annotated[
        NotNegative, Parameter(help="Of the Langevin steps. Default: 0.5.", show_default=False)
    ] = 0.5,
    momentum: Annotated[
        Share, Parameter(help="Of the steps, in [0, 1). Default: 0.5.", show_default=False)
    ] = 0.5,
    noise: Annotated[
        NotNegative,
        Parameter(help="Standard deviation, in pixels. Default: 0.001.", show_default=False),
    ] = 0.001,
    heun: Annotated[
        bool,
        Parameter(
            help="Two gradients a step (Heun's method). Default: no.",
            negative="",
            show_default=False,
        ),
    ] = False,
    candidates: Annotated[
        Count,
        Parameter(
            help="Energy guidance: starts to choose each chain's from. Default: 4.",
            show_default=False,
        ),
    ] = 4,
    fixed_steps: Annotated[
        bool,
        Parameter(
            help="Take all steps. Default: stop at the class's reference energy.",
            negative="",
            show_default=False,
        ),
    ] = False,
    quantile: Annotated[
        NotNegative,
        Parameter(
            help="Of a class's energies on training images, which is its reference. Default: 0.5.",
            show_default=False,
        ),
    ] = 0.5,
    mode: Annotated[
        Literal["local", "class", "gaussian", "noise"],
        Parameter(help="Of the starts. Default: local.", show_default=False),
    ] = "local",
    neighbors: Annotated[
        Count, Parameter(help="Of a local start. Default: 10.", show_default=False)
    ] = 10,
    variance: Annotated[
        NotNegative,
        Parameter(help="Share that the starts' PCA keeps. Default: 0.95.", show_default=False),
    ] = 0.95,
    sigma: Annotated[
        NotNegative, Parameter(help="Scale of the starts. Default: 1.", show_default=False)
    ] = 1.0,
    dataset: Annotated[
        str | None, Parameter(help="Whose training images. Default: that of training.")
    ] = None,
    data_dir: Annotated[
        Path | None, Parameter(help="Where it lies. Default: where it lay for training.")
    ] = None,
    limit_train: Annotated[
        Count | None, Parameter(help="Use so many training images. Default: all.")
    ] = None,
    batch_size: Annotated[
        Count, Parameter(help="Chains at a time. Default: 64.", show_default=False)
    ] = 64,
    seed: Annotated[
        Whole,
        Parameter(
            help="Of each class's first image; then +1 each. Default: 0.", show_default=False
        ),
    ] = 0,
    metrics: Annotated[
        bool,
        Parameter(
            help="Write IS, FID, KID, precision and recall against the test images of these "
            "classes; takes --extractor. Default: no.",
            negative="",
            show_default=False,
        ),
    ] = False,
    extractor: Annotated[
        str | None,
        Parameter(
            help="Path or URL of the feature extractor: a SavedModel images -> features, logits, a "
            ".keras file, or Inception's frozen graph. Default: none."
        ),
    ] = None,
    animate: Annotated[
        bool,
        Parameter(
            help="Write a GIF of the first chains. Default: no.", negative="", show_default=False
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Draw images of classes by Langevin chains down the classifier's joint energy.

    A stopped command goes on when it is repeated; with a larger --num it adds images.
    """
    settings: dict[str, Any] = {
        "steps": steps,
        "sampler": {
            "step_size": step_size,
            "momentum": momentum,
            "noise": noise,
            "heun": heun,
            "candidates": candidates,
            "adaptive": not fixed_steps,
        },
        "starts": {
            "neighbors": neighbors,
            "variance": variance,
            "sigma": sigma,
            "mode": mode,
        },
        "quantile": quantile,
        "limit_train": limit_train,
        "seed": seed,
    }
    with Signals():
        with preparing():
            if metrics != (extractor is not None):
                raise ValueError(
                    "--metrics and --extractor go together; received only "
                    + ("--metrics" if metrics else "--extractor")
                )
        say("Loading TensorFlow ...")
        load_tensorflow(debug)
        from der_tf import generation
        from der_tf.evaluation.loading import load_classifier
        from der_tf.generation.collection import Collection

        with preparing():
            classifier = load_classifier(run_or_model)
            images = _data(classifier, dataset, data_dir, limit_train)
            wanted = _classes(classes, images.class_names)
            scorer = generation.load_extractor(extractor) if extractor else None
            settings |= {"model": str(classifier.path), "dataset": images.name}
            place = out or _default_place(classifier)
            collection = Collection(place, images.class_names)
        with writing(place):
            with preparing():
                collection.open(settings)
                starts = _starts(collection, classifier, images, settings)
                sampler = generation.LangevinSampler(
                    classifier.model, starts, batch_size=batch_size, **settings["sampler"]
                )
            _sample(collection, sampler, wanted, range(seed, seed + num), steps)
            _draw(collection, sampler, wanted, range(seed, seed + num), steps, animate)
            if scorer:
                seeds = range(seed, seed + num)
                _score(collection, classifier, images, wanted, seeds, scorer)
    say(f"Written to {place}")


def _data(
    classifier: Classifier, dataset: str | None, data_dir: Path | None, limit_train: int | None
) -> Any:
    from der_tf import data

    trained = classifier.trained
    name = dataset or (trained.dataset if trained else None)
    if name is None:
        raise ValueError(f"{classifier.path} does not say its data set; give --dataset")
    own = trained if trained and trained.dataset == name else None
    images = data.load(
        name,
        data_dir=data_dir or (own.data_dir if own else None),
        image_size=own.image_size if own else None,
        limit_train=limit_train,
        augment=False,
    )
    if images.input_shape != classifier.image_shape:
        raise ValueError(
            f"{classifier.path} takes images of shape {classifier.image_shape}; received "
            f"--dataset {name} of shape {images.input_shape}"
        )
    if images.input_shape[-1] not in (1, 3):
        raise ValueError(f"PNGs have 1 or 3 channels; received images {images.input_shape}")
    return images


def _classes(text: str | None, names: tuple[str, ...]) -> list[int]:
    """Numbers of the classes that are named or numbered."""
    if text is None:
        return list(range(len(names)))
    found = []
    for part in (part.strip() for part in text.split(",")):
        if part in names:
            found.append(names.index(part))
        elif part.isascii() and part.isdigit() and int(part) < len(names):
            found.append(int(part))
        else:
            raise ValueError(
                f"--classes takes 0..{len(names) - 1} or names among {', '.join(names[:20])}"
                f"{' ...' if len(names) > 20 else ''}; received {part!r}"
            )
    if len(set(found)) < len(found):
        raise ValueError(f"--classes names each class once; received {text}")
    return found


def _starts(
    collection: Collection, classifier: Classifier, images: Any, settings: dict[str, Any]
) -> LocalClasswisePCA:
    """The fitted starts; of a command that goes on, those that it had."""
    import numpy as np

    from der_tf.generation import LocalClasswisePCA

    if collection.starts.exists():
        return LocalClasswisePCA.load(collection.starts)
    starts = LocalClasswisePCA(**settings["starts"])
    say(f"Fitting starts ({starts.mode}) to {images.train_size:,} training images ...")
    # One epoch in an order that is the same at every call.
    batches = images.training_stream().take(images.steps_per_epoch).as_numpy_iterator()
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    starts.fit(pixels, labels)
    if settings["sampler"]["adaptive"]:
        say("Measuring the energies of training images ...")
        starts.set_reference_energies(classifier.model, pixels, labels, settings["quantile"])
    starts.save(collection.starts)
    return starts


def _sample(
    collection: Collection, sampler: LangevinSampler, wanted: list[int], seeds: range, steps: int
) -> None:
    missing = collection.missing(wanted, seeds)
    total = len(wanted) * len(seeds)
    if len(missing) < total:
        say(f"{total - len(missing):,} of {total:,} images are there")
    done = 0
    try:
        with _progress(len(missing)) as progress:
            for at in range(0, len(missing), sampler.batch_size):
                labels, own_seeds = zip(*missing[at : at + sampler.batch_size], strict=True)
                collection.add(labels, own_seeds, sampler.run(labels, own_seeds, steps))
                done += len(labels)
                progress(done)
    except Interrupted as interrupted:
        raise interrupted.add(
            f"{done} new images are in {collection.path}; the same command goes on"
        ) from None


def _draw(
    collection: Collection,
    sampler: LangevinSampler,
    wanted: list[int],
    seeds: range,
    steps: int,
    animate: bool,
) -> None:
    """The grid, and of the first chains the energies and maybe a GIF."""
    import numpy as np

    from der_tf.generation import pictures

    names = collection.class_names
    rows = [[collection.image(y, s) for s in seeds[:COLUMNS]] for y in wanted]
    pictures.save_grid(collection.path / "grid.png", np.array(rows), [names[y] for y in wanted])
    columns = max(1, min(TRACED, len(seeds), sampler.batch_size // len(wanted)))
    shown = wanted[: sampler.batch_size]
    labels = np.repeat(shown, columns)
    traces = sampler.trace(labels, np.tile(seeds[:columns], len(shown)), steps)
    pictures.save_traces(
        collection.path / "energies.png",
        traces.joint_energy,
        labels,
        names,
        sampler.reference_energies,
    )
    if animate:
        frames = traces.frames.reshape(-1, len(shown), columns, *traces.frames.shape[2:])
        pictures.save_animation(collection.path / "chains.gif", frames)


def _score(
    collection: Collection,
    classifier: Classifier,
    images: Any,
    wanted: list[int],
    seeds: range,
    scorer: Any,
) -> None:
    import warnings

    import numpy as np

    from der_tf import generation
    from der_tf.files import write_text

    say(f"Scoring by {scorer.name} ...")
    samples = generation.extract(collection.batches(wanted, seeds), scorer)
    chosen = (pixels[np.isin(labels, wanted)] for pixels, labels in images.test.as_numpy_iterator())
    reference = generation.extract(chosen, scorer)
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", generation.BiasedScoreWarning)
        scores = [
            *([generation.inception_score(samples)] if samples.logits is not None else []),
            generation.frechet_distance(samples, reference),
            generation.kernel_distance(samples, reference),
            *generation.precision_recall(samples, reference),
        ]
    notes = [
        str(w.message) for w in noticed if issubclass(w.category, generation.BiasedScoreWarning)
    ]
    rows = collection.rows(wanted, seeds)
    classified = [
        np.argmax(classifier.model(batch), axis=1) for batch in collection.batches(wanted, seeds)
    ]
    report = {
        "schema": 1,
        "extractor": scorer.name,
        "num_samples": len(samples),
        "num_reference": len(reference),
        "reference": f"test images of {images.name}",
        "scores": {score.name: score.value for score in scores},
        "mean_joint_energy": float(np.mean([row["joint_energy"] for row in rows])),
        "mean_steps_taken": float(np.mean([row["steps_taken"] for row in rows])),
        "classifier_agreement": float(
            np.mean(np.concatenate(classified) == [row["label"] for row in rows])
        ),
        "notes": notes,
    }
    write_text(collection.path / "metrics.json", json.dumps(report, indent=2) + "\n")
    for score in scores:
        say(f"{scorer.name}-{score.name} {score.value:.4g}")
    for note in notes:
        say(f"Note: {note}")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Images done and images a second: a bar on a terminal, else a line every ten seconds."""
    import time

    began = spoke = time.monotonic()
    if not sys.stdout.isatty():

        def speak(done: int) -> None:
            nonlocal spoke
            now = time.monotonic()
            if now - spoke >= 10 or done == total:
                say(f"{done:,} of {total:,} images, {done / max(now - began, 1e-9):.1f} images/s")
                spoke = now

        yield speak
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn()) as bar:
        task = bar.add_task("", total=total)

        def show(done: int) -> None:
            speed = done / max(time.monotonic() - began, 1e-9)
            bar.update(task, completed=done, description=f"{speed:.1f} images/s")

        yield show


def _default_place(classifier: Classifier) -> Path:
    if classifier.run:
        return classifier.run.path / "samples"
    path = classifier.path.resolve()
    title = f"{path.parent.name}-{path.name}" if path.name.isdigit() else path.stem
    return Path("runs") / "samples" / title
