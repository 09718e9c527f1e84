"""``der-tf export``: write a trained classifier as a SavedModel version to serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from der_tf.cli import next_steps
from der_tf.cli.console import (
    Count,
    Debug,
    FolderName,
    UsageError,
    Whole,
    load_tensorflow,
    preparing,
    say,
)
from der_tf.cli.defense_options import DefenseOptions
from der_tf.training.faults import Signals, writing


def export(
    run_or_model: Annotated[
        Path, Parameter(help="A run directory (its best.keras) or a .keras file.")
    ],
    /,
    *,
    export_dir: Annotated[
        Path,
        Parameter(help="Folder that gets NAME/VERSION. Default: saved_models.", show_default=False),
    ] = Path("saved_models"),
    model_name: Annotated[
        FolderName | None,
        Parameter(help="NAME. Default: DATASET-ATTACK of the run, else the file's name."),
    ] = None,
    version: Annotated[
        Count | None, Parameter(help="VERSION, which must be free. Default: the next number.")
    ] = None,
    labels: Annotated[
        Path | None,
        Parameter(help="File with a class name a line. Default: the run's, else numbers."),
    ] = None,
    no_batching: Annotated[
        bool,
        Parameter(
            help="Leave the batching op out of the graph. Default: put it in.",
            negative="",
            show_default=False,
        ),
    ] = False,
    max_batch_size: Annotated[
        Count | None,
        Parameter(help="Most images that the network runs on at once. Default: 64."),
    ] = None,
    batch_timeout_micros: Annotated[
        Whole | None,
        Parameter(help="How long a batch waits to become full, in microseconds. Default: 0."),
    ] = None,
    initializer: Annotated[
        Path | None,
        Parameter(
            help="Starts of chains, such as the starts.npz of `der-tf generate`: adds the "
            "signature `sample`. Default: none."
        ),
    ] = None,
    defense: DefenseOptions = DefenseOptions(),  # noqa: B008 (it is immutable)
    debug: Debug = False,
) -> None:
    """Write a SavedModel version that TensorFlow Serving and `python -m serve` load."""
    batching: dict[str, Any] = {
        "max_batch_size": max_batch_size,
        "batch_timeout_micros": batch_timeout_micros,
    }
    batching = {name: value for name, value in batching.items() if value is not None}
    with Signals():
        with preparing():
            if no_batching and batching:
                raise ValueError(
                    "--no-batching leaves nothing to set; received "
                    + ", ".join("--" + name.replace("_", "-") for name in batching)
                )
        say("Loading TensorFlow ...")
        load_tensorflow(debug)
        import keras

        from der_tf import export as exporting
        from der_tf.evaluation.loading import load_classifier
        from der_tf.generation import LocalClasswisePCA

        with preparing():
            classifier = load_classifier(run_or_model)
            if not isinstance(classifier.model, keras.Model):
                raise ValueError(
                    "a run directory or a .keras file can be exported; received the SavedModel "
                    f"{classifier.path}"
                )
            names = classifier.class_names
            if labels is not None:
                # Some editors begin a file with a byte order mark.
                names = tuple(labels.read_text(encoding="utf-8-sig").splitlines())
            starts = None
            if initializer is not None:
                starts = LocalClasswisePCA.load(initializer)
            name = model_name or (
                classifier.trained.name if classifier.trained else classifier.path.stem
            )
        path = export_dir / name
        say(f"Exporting {classifier.path} to {path} ...")
        with writing(path):
            try:
                written = exporting.export(
                    classifier.model,
                    path,
                    version=version,
                    class_names=names,
                    batching=not no_batching,
                    defense=defense.build(),
                    initializer=starts,
                    card=_card(classifier),
                    **batching,
                )
            # Any other OSError is a disk that fails at work.
            except (ValueError, FileExistsError, NotADirectoryError) as error:
                raise UsageError(str(error)) from error
    say(f"Written to {written}. Next:")
    say(f"  {next_steps.serve(written)}")


def _card(classifier: Any) -> dict[str, Any]:
    """What is known of the training and its result."""
    card = {}
    if classifier.trained:
        card["training"] = classifier.trained.for_card()
    report = classifier.run.tested() if classifier.run else None
    if report is not None:
        card["evaluation"] = {name: report[name] for name in ("images", "natural", "attacks")}
    return card
