"""``der-tf evaluate``: attack a trained classifier on test images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from der_tf.cli.console import (
    Count,
    Debug,
    NotNegative,
    Whole,
    attack_progress,
    load_tensorflow,
    preparing,
    say,
    show_table,
)
from der_tf.files import write_text
from der_tf.training.faults import Signals, writing
from der_tf.training.recipes import resolve

if TYPE_CHECKING:
    from der_tf.data import ImageData
    from der_tf.evaluation.loading import Classifier


def evaluate(
    run_or_model: Annotated[
        Path,
        Parameter(
            help="A run directory (its best.keras), a .keras file, or a SavedModel, NAME or "
            "NAME/VERSION."
        ),
    ],
    /,
    *,
    attacks: Annotated[
        str,
        Parameter(
            help="Names with commas between: fgsm, rs_fgsm, n_fgsm, pgd, mim, trades ... Default: "
            "fgsm,pgd.",
            show_default=False,
        ),
    ] = "fgsm,pgd",
    num_examples: Annotated[
        Count | None,
        Parameter(help="Measure on so many test images, drawn by the seed. Default: all."),
    ] = None,
    epsilon: Annotated[
        NotNegative | None,
        Parameter(help="Radius in pixels of [0, 1], such as 8/255. Default: that of training."),
    ] = None,
    norm: Annotated[
        Literal["linf", "l2"] | None, Parameter(help="Of the ball. Default: that of training.")
    ] = None,
    steps: Annotated[
        Count | None, Parameter(help="Of the attacks that take several. Default: the attack's.")
    ] = None,
    restarts: Annotated[
        Count | None,
        Parameter(help="Of the attacks that start at random. Default: the attack's: 1."),
    ] = None,
    dataset: Annotated[
        str | None, Parameter(help="Whose test images. Default: that of training.")
    ] = None,
    data_dir: Annotated[
        Path | None, Parameter(help="Where it lies. Default: where it lay for training.")
    ] = None,
    batch_size: Annotated[
        Count, Parameter(help="Images at a time. Default: 128.", show_default=False)
    ] = 128,
    seed: Annotated[
        Whole,
        Parameter(help="Of random starts and --num-examples. Default: 0.", show_default=False),
    ] = 0,
    out: Annotated[
        Path | None,
        Parameter(
            help="File without ending that gets .json and .md. Default: "
            "RUN/evaluations/ATTACKS, for a model runs/evaluations/NAME-ATTACKS."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Attack a trained classifier on test images: accuracies, 95 % intervals, energies, worst case.

    The attacks know the model and run on it in inference mode.
    """
    names = [name.strip() for name in attacks.split(",") if name.strip()]
    with Signals():
        say("Loading TensorFlow ...")
        load_tensorflow(debug)
        from der_tf import data
        from der_tf import evaluation as measure
        from der_tf.evaluation.loading import load_classifier

        with preparing():
            classifier = load_classifier(run_or_model)
            trained = classifier.trained
            name = dataset or (trained.dataset if trained else None)
            if name is None:
                raise ValueError(f"{run_or_model} does not say its data set; give --dataset")
            # What training used where it is known, else what the data set asks for.
            base = trained or resolve({"dataset": name})
            if norm not in (None, base.norm):
                base = dataclasses.replace(
                    base, norm=norm, epsilon=resolve({"dataset": name, "norm": norm}).epsilon
                )
            radius = base.epsilon if epsilon is None else epsilon
            chosen = _attacks(names, radius, base.norm, steps, restarts)
            images = data.load(
                name,
                data_dir=data_dir or (base.data_dir if name == base.dataset else None),
                batch_size=batch_size,
                image_size=base.image_size if name == base.dataset else None,
            )
            if images.input_shape != classifier.image_shape:
                raise ValueError(
                    f"{classifier.path} takes images of shape {classifier.image_shape}; received "
                    f"--dataset {name} of shape {images.input_shape}"
                )
            if num_examples is not None and num_examples > images.test_size:
                raise ValueError(
                    f"{name} has {images.test_size} test images; received --num-examples "
                    f"{num_examples}"
                )
        total = num_examples or images.test_size
        with attack_progress(names) as progress, preparing():
            result = measure.evaluate(
                classifier.model,
                _subset(images, num_examples, seed) if num_examples else images.test,
                attacks=chosen,
                seed=seed,
                progress=lambda attack, done, _: progress(attack, done, total),
            )
        report = {
            "schema": 1,
            "model": str(classifier.path),
            "dataset": name,
            "split": "test",
            "of": images.test_size,
            "seed": seed,
            **measure.to_dict(result),
        }
        title = f"{classifier.path} on {_which(report)}"
        show_table(report, title)
        place = out or _default_place(classifier, names, num_examples)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(f"{place}.json", json.dumps(report, indent=2) + "\n")
            write_text(f"{place}.md", f"{title}\n\n{measure.to_markdown(report)}")
        say(f"Written to {place}.json and {place}.md")


def _attacks(
    names: list[str], epsilon: float, norm: str, steps: int | None, restarts: int | None
) -> dict[str, Any]:
    """The attacks, with options where they take them; an option that none takes is refused."""
    from der_tf import attacks

    if not names:
        raise ValueError(f"--attacks takes names among {', '.join(attacks.names())}; received none")
    if len(set(names)) < len(names):
        raise ValueError(f"--attacks names each attack once; received {','.join(names)}")
    options = {"steps": steps, "restarts": restarts}
    given = {option: value for option, value in options.items() if value is not None}
    taken: set[str] = set()
    chosen = {}
    for name in names:
        attack = attacks.get(name, epsilon=epsilon, norm=norm)
        fields = {field.name for field in dataclasses.fields(attack)}
        takes: dict[str, Any] = {
            option: value
            for option, value in given.items()
            if option in fields and not (option == "restarts" and name == "fgsm")
        }
        taken |= takes.keys()
        chosen[name] = dataclasses.replace(attack, **takes)
    for option in given.keys() - taken:
        raise ValueError(f"--{option} {given[option]} is not taken by {', '.join(names)}")
    return chosen


def _subset(images: ImageData, count: int, seed: int) -> Any:
    """``count`` test images drawn without regard to their order, in which classes may come."""
    import numpy as np
    import tensorflow as tf

    mask = np.zeros(images.test_size, bool)
    mask[np.random.default_rng(seed).choice(images.test_size, count, replace=False)] = True
    keep = tf.constant(mask)
    return (
        images.test.unbatch()
        .enumerate()
        .filter(lambda index, _: keep[index])
        .map(lambda _, pair: pair)
        .batch(images.batch_size)
    )


def _which(report: dict[str, Any]) -> str:
    if report["images"] == report["of"]:
        return f"{report['dataset']}, all {report['of']:,} test images"
    return (
        f"ONLY {report['images']:,} OF {report['of']:,} test images of {report['dataset']}: "
        "an estimate, not the benchmark"
    )


def _default_place(classifier: Classifier, names: list[str], num_examples: int | None) -> Path:
    what = "-".join(names) + (f"-{num_examples}-images" if num_examples else "")
    if classifier.run:
        if classifier.path != classifier.run.best:
            what = f"{classifier.path.stem}-{what}"
        return classifier.run.path / "evaluations" / what
    path = classifier.path.resolve()
    # saved_models/NAME/3 -> NAME-3, x.keras -> x
    title = f"{path.parent.name}-{path.name}" if path.name.isdigit() else path.stem
    return Path("runs") / "evaluations" / f"{title}-{what}"
