"""``der-tf generate``: images of wanted classes from a trained classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from der_tf.cli.console import image_progress, load_tensorflow, preparing, say
from der_tf.cli.generate_options import GenerateOptions
from der_tf.training.faults import Interrupted, Signals, writing

if TYPE_CHECKING:
    from der_tf.evaluation.loading import Classifier
    from der_tf.generation import Extractor, LangevinSampler, LocalClasswisePCA
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
    options: GenerateOptions = GenerateOptions(),  # noqa: B008 (it is immutable)
) -> None:
    """Draw images of classes by Langevin chains down the classifier's joint energy.

    A stopped command goes on when it is repeated; with a larger --num it adds images.
    """
    with Signals():
        with preparing():
            if options.metrics != (options.extractor is not None):
                raise ValueError(
                    "--metrics and --extractor go together; received only "
                    + ("--metrics" if options.metrics else "--extractor")
                )
        say("Loading TensorFlow ...")
        load_tensorflow(options.debug)
        from der_tf import generation
        from der_tf.evaluation.loading import load_classifier
        from der_tf.generation import digests
        from der_tf.generation.collection import Collection

        with preparing():
            classifier = load_classifier(run_or_model)
            digest = digests.of_files(classifier.path)  # at once: a run may be going on
            images = _data(classifier, options)
            wanted = _classes(options.classes, images.class_names)
            scorer = _scorer(options.extractor, images) if options.extractor else None
            own = {"model": str(classifier.path), "digest": digest, "dataset": images.name}
            settings = options.sampling() | own
            place = options.out or _default_place(classifier)
            collection = Collection(place, images.class_names)
        with writing(place):
            with preparing():
                collection.open(settings)
                starts = _starts(collection, classifier, images, settings)
                sampler = generation.LangevinSampler(
                    classifier.model, starts, batch_size=options.batch_size, **settings["sampler"]
                )
            _sample(collection, sampler, wanted, options.seeds, options.steps)
            _draw(collection, sampler, wanted, options)
            if scorer:
                _score(collection, classifier, images, wanted, options.seeds, scorer)
    say(f"Written to {place}")


def _data(classifier: Classifier, options: GenerateOptions) -> Any:
    from der_tf import data

    trained = classifier.trained
    name = options.dataset or (trained.dataset if trained else None)
    if name is None:
        raise ValueError(f"{classifier.path} does not say its data set; give --dataset")
    own = trained if trained and trained.dataset == name else None
    images = data.load(
        name,
        data_dir=options.data_dir or (own.data_dir if own else None),
        image_size=own.image_size if own else None,
        limit_train=options.limit_train,
        augment=False,
    )
    classifier.check_images(name, images.input_shape)
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


def _scorer(source: str, images: Any) -> Extractor:
    """The feature extractor; that it takes such images is known before any is drawn."""
    from der_tf.generation import load_extractor

    extractor = load_extractor(source)
    extractor.check_channels(images.input_shape[-1])
    return extractor


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
    with writing(collection.starts):
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
        with image_progress(len(missing)) as progress:
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
    options: GenerateOptions,
) -> None:
    """The grid, and of the first chains the energies and maybe a GIF."""
    import numpy as np

    from der_tf.generation import pictures

    names, seeds = collection.class_names, options.seeds
    rows = [[collection.image(y, s) for s in seeds[:COLUMNS]] for y in wanted]
    pictures.save_grid(collection.path / "grid.png", np.array(rows), [names[y] for y in wanted])
    columns = max(1, min(TRACED, len(seeds), sampler.batch_size // len(wanted)))
    shown = wanted[: sampler.batch_size]
    labels = np.repeat(shown, columns)
    traces = sampler.trace(labels, np.tile(seeds[:columns], len(shown)), options.steps)
    pictures.save_traces(
        collection.path / "energies.png",
        traces.joint_energy,
        labels,
        names,
        sampler.reference_energies,
    )
    if options.animate:
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
    import numpy as np

    from der_tf import generation
    from der_tf.files import write_text

    say(f"Scoring by {scorer.name} ...")
    samples = generation.extract(collection.batches(wanted, seeds), scorer)
    chosen = (pixels[np.isin(labels, wanted)] for pixels, labels in images.test.as_numpy_iterator())
    reference = generation.extract(chosen, scorer)
    scores, notes = generation.all_scores(samples, reference)
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


def _default_place(classifier: Classifier) -> Path:
    if classifier.run:
        return classifier.run.path / "samples"
    return Path("runs") / "samples" / classifier.title
