"""``der-tf train``: from options to a measured, exported, robust classifier."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from der_tf.cli import next_steps
from der_tf.cli.console import (
    attack_progress,
    find_dataset,
    load_tensorflow,
    preparing,
    say,
    show_table,
)
from der_tf.cli.train_options import TrainOptions
from der_tf.files import write_text
from der_tf.training import workers
from der_tf.training.faults import Interrupted, Signals, reading, writing
from der_tf.training.recipes import Configuration, arguments
from der_tf.training.run_directory import (
    RunDirectory,
    configure,
    default_path,
    processor,
    versions,
)

if TYPE_CHECKING:
    from der_tf import RobustClassifier
    from der_tf.data import ImageData
    from der_tf.training.run import Training


def train(*, options: TrainOptions = TrainOptions()) -> None:  # noqa: B008 (it is immutable)
    """Train a robust classifier, measure it on the test set, export it.

    Without arguments: RS-FGSM with DER on the digits that come with scikit-learn, in a minute.
    A run that was stopped goes on with `der-tf train --run-dir RUN`, on as many processors of the
    same kind with the same weights, bit for bit, as if it had never stopped; GPUs promise less.
    """
    given = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(Configuration)
    }
    if options.data_dir is not None:
        given["data_dir"] = str(options.data_dir)
    with Signals() as signals, contextlib.ExitStack() as held:
        with preparing():
            directory = RunDirectory(options.run_dir) if options.run_dir else None
            config = configure(given, None if options.no_resume else directory)
            find_dataset(config.dataset, config.data_dir, options.debug)
            directory = directory or RunDirectory(default_path(config))
            # What another worker writes is thrown away, but it has to write: reading the
            # variables to save is work of all workers together.
            own = directory
            if not workers.is_chief():
                own = RunDirectory(Path(held.enter_context(tempfile.TemporaryDirectory())))
            held.enter_context(own.held())
        say("Loading TensorFlow ...")
        load_tensorflow(options.debug)
        is_finished = directory.last.exists() and not options.no_resume
        dataset, model = prepared(config, is_finished)
        if options.no_resume:
            with preparing():
                if own is directory and (old := directory.set_aside()):
                    say(f"The run in {directory.path} is now {old}")
                    held.enter_context(directory.held())
            directory = own  # the chief may not yet have set aside what lies in its own
        trained(
            config,
            directory,
            own,
            signals,
            dataset,
            model,
            checkpoint_minutes=options.checkpoint_minutes,
            arguments=sys.argv[1:],
            go_on=next_steps.go_on(directory.path, options=_not_kept(options)),
        )
        if workers.is_chief():
            report = _measured(config, directory, dataset)
            if not options.no_export:
                name = options.model_name or config.name
                _exported(config, directory, dataset, report, options.export_dir / name)
            say("")
            title = f"{dataset.name}: all {dataset.test_size:,} test images"
            show_table(report, f"{title}, best.keras")
            if "swa" in report:
                show_table(report["swa"], f"{title}, swa.keras")
            for line in next_steps.after_training(directory.path, report.get("export")):
                say(line)


def _not_kept(options: TrainOptions) -> list[str]:
    """The options given that are not in the configuration of the run, or may differ from it."""
    kept = {field.name for field in dataclasses.fields(Configuration)} - {"data_dir"}
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name not in kept | {"run_dir", "no_resume"}
        and getattr(options, field.name) != field.default
    }
    return arguments(given)


def prepared(config: Configuration, is_finished: bool) -> tuple[ImageData, RobustClassifier | None]:
    """All that can still be refused, before a file of the run is touched.

    Args:
        config: what to train.
        is_finished: nothing is left to train.

    Returns:
        The data set, and the classifier unless the run is finished.
    """
    from der_tf.training import run

    with preparing():
        run.training_attack(config)
        run.outer_objective(config)
        strategy = None if is_finished else run.choose_strategy()
        dataset = run.load_data(config)
        return dataset, None if strategy is None else run.build(config, dataset, strategy)


def trained(
    config: Configuration,
    directory: RunDirectory,
    own: RunDirectory,
    signals: Signals,
    dataset: ImageData,
    model: RobustClassifier | None,
    *,
    checkpoint_minutes: float,
    arguments: list[str],
    go_on: str,
) -> None:
    """Train what is left to train.

    Args:
        config: what to train.
        directory: of the run; it is read.
        own: what this worker writes to: ``directory``, held by the caller, or that of one who
            is not the chief.
        signals: SIGTERM and SIGINT.
        dataset: from :func:`prepared`, as is ``model``.
        model: None when the run is finished.
        checkpoint_minutes: as ``--checkpoint-minutes``.
        arguments: of the command, for the record.
        go_on: the command that goes on where this one is stopped.
    """
    from der_tf.training import run

    if model is None:
        say(f"The run in {directory.path} is finished: nothing is trained again")
        return
    training = run.Training(
        config,
        own,
        dataset,
        model,
        signals,
        checkpoint_minutes,
        restore_from=directory.checkpoints,
    )
    record = directory.record()
    if record is None:
        with writing(own.config):
            own.write_record(config, arguments, dataset.class_names)
    else:
        _note_other_versions(record)
    _announce(training, directory)
    try:
        training.run()
    except Interrupted as interrupted:
        raise interrupted.add(
            f"the state after {training.checkpoints.position} is saved; go on with {go_on}"
        ) from None
    if training.stopped_early:
        say(
            f"Stopped after epoch {training.checkpoints.epoch}: no better validation robust "
            f"accuracy for {config.early_stopping} epochs"
        )
    if training.swa and not training.swa.count:
        say(
            f"No swa.keras: training ended after epoch {training.checkpoints.epoch}, before "
            f"--swa-start {config.swa_start}"
        )
    if training.stopped_by_guard:
        say(f"Stopped in epoch {training.checkpoints.epoch}: catastrophic overfitting")


def _note_other_versions(record: dict[str, Any]) -> None:
    now = {**versions(), "processor": processor()}
    before = record.get("versions", {})
    if "processor" in record:  # runs of before do not tell it
        before = {**before, "processor": record["processor"]}
    for name, then in before.items():
        if now.get(name) != then:
            say(
                f"Note: the run began with {name} {then}, now {now.get(name)}: it may end with "
                "other last digits"
            )


def _announce(training: Training, directory: RunDirectory) -> None:
    config, data, model = training.config, training.dataset, training.model
    shape = " x ".join(map(str, data.input_shape))
    say(
        f"{data.name}: {data.train_size:,} training, {data.validation_size:,} validation, "
        f"{data.test_size:,} test images of {shape}, {data.num_classes} classes"
    )
    cures = ["no DER"]
    if config.der_weight:
        lazy = f", on one step in {config.der_interval}" if config.der_interval > 1 else ""
        cures = [
            f"DER {config.der_weight:g} ({config.der_penalty}, marginal {config.der_marginal:g}, "
            f"joint {config.der_joint:g}, reference {config.der_reference}{lazy})"
        ]
    if config.grad_align_weight:
        cures.append(f"GradAlign {config.grad_align_weight:g}")
    if config.aaer_weight:
        cures.append(f"AAER {config.aaer_weight:g}")
    if config.awp_gamma:
        cures.append(f"AWP {config.awp_gamma:g}")
    say(
        f"{config.model}, {model.network.count_params():,} parameters; {config.attack} at "
        f"{config.norm} {config.epsilon:.4g}, {config.objective}, {', '.join(cures)}"
    )
    place = "from the start"
    if training.resumed:
        place = f"going on after {training.checkpoints.position}"
    say(
        f"{config.epochs} epochs of {training.steps} steps, {place}; run directory {directory.path}"
    )


def _measured(config: Configuration, directory: RunDirectory, dataset: ImageData) -> dict[str, Any]:
    """The content of evaluation.json, made if it is not there."""
    with reading():
        before = directory.tested()
    if before is not None:
        return before
    from der_tf import attacks
    from der_tf.evaluation import evaluate, to_dict

    attack = attacks.get(
        "pgd",
        epsilon=config.epsilon,
        norm=config.norm,
        steps=config.evaluation_steps,
        restarts=config.evaluation_restarts,
    )

    def measured(path: Path) -> dict[str, Any]:
        say(f"Measuring {path.name} on the test set ...")
        network = _network(path)
        with attack_progress(dataset.test_size) as progress:
            result = evaluate(
                network,
                dataset.test,
                attacks={"pgd": attack},
                seed=config.seed,
                progress=progress,
            )
        return to_dict(result)

    report = {
        "schema": 1,
        "model": directory.best.name,
        "dataset": config.dataset,
        "split": "test",
        "seed": config.seed,
        **measured(directory.best),
    }
    if directory.swa.exists():
        report["swa"] = {"model": directory.swa.name, **measured(directory.swa)}
    _write_report(directory, report)
    return report


def _exported(
    config: Configuration,
    directory: RunDirectory,
    dataset: ImageData,
    report: dict[str, Any],
    path: Path,
) -> None:
    """Export unless this run did; where to stands in evaluation.json."""
    if "export" in report and Path(report["export"]).exists():
        return
    from der_tf.export import export

    say(f"Exporting to {path} ...")
    network = _network(directory.best)
    with writing(path):
        version = export(
            network,
            path,
            class_names=dataset.class_names,
            card={
                "training": config.for_card(),
                "evaluation": {name: report[name] for name in ("images", "natural", "attacks")},
            },
        )
    report["export"] = str(version)
    _write_report(directory, report)


def _network(path: Path) -> Any:
    from der_tf.evaluation.loading import load_classifier

    with reading():
        return load_classifier(path).model


def _write_report(directory: RunDirectory, report: dict[str, Any]) -> None:
    with writing(directory.evaluation):
        write_text(directory.evaluation, json.dumps(report, indent=2) + "\n")
