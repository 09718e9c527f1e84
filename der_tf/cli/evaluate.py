"""``der-tf evaluate``: attack a trained classifier on test images."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from der_tf.cli.console import (
    Count,
    Debug,
    NotNegative,
    Seed,
    UsageError,
    attack_progress,
    load_tensorflow,
    noticed,
    preparing,
    say,
    show_table,
)
from der_tf.cli.defense_options import DefenseOptions
from der_tf.files import write_text
from der_tf.training.faults import Interrupted, Signals, writing
from der_tf.training.recipes import resolve

if TYPE_CHECKING:
    from der_tf.data import ImageData
    from der_tf.defenses import EnergyDescent
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
    suite: Annotated[
        Literal["quick", "standard", "full"] | None,
        Parameter(
            help="quick: FGSM, PGD-20. standard: FGSM, RS-FGSM, PGD-50-10, C&W margin, AutoAttack. "
            "full: KL-PGD, C&W l2 and with --denoiser Diff-PGD too. Default: none, --attacks says."
        ),
    ] = None,
    attacks: Annotated[
        str | None,
        Parameter(
            help="Names with commas between: fgsm, rs_fgsm, n_fgsm, pgd, mim, trades ... Default: "
            "fgsm,pgd.",
        ),
    ] = None,
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
    denoiser: Annotated[
        Path | None,
        Parameter(help="For Diff-PGD: the .keras file of `der-tf train-denoiser`. Default: none."),
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
        Seed,
        Parameter(help="Of random starts and --num-examples. Default: 0.", show_default=False),
    ] = 0,
    out: Annotated[
        Path | None,
        Parameter(
            help="File without ending that gets .json, .md and .npz. Default: "
            "RUN/evaluations/SUITE, for a model runs/evaluations/NAME-SUITE (or ATTACKS); another "
            "evaluation that lies there is not overwritten."
        ),
    ] = None,
    defend: Annotated[
        bool,
        Parameter(
            help="Measure the model behind the energy-guided defence too: under the attacks as "
            "they are, and under those that go through it (many times slower). Default: no.",
            negative="",
            show_default=False,
        ),
    ] = False,
    defense: DefenseOptions = DefenseOptions(),  # noqa: B008 (it is immutable)
    debug: Debug = False,
) -> None:
    """Attack a trained classifier on test images: accuracies, 95 % intervals, energies, worst case.

    The attacks know the model and run on it in inference mode. A stopped command goes on when it
    is repeated.
    """
    names = _names(suite, attacks, steps, restarts)
    if defense != DefenseOptions() and not defend:
        raise UsageError("the options of a defence go with --defend; received them without it")
    if out is not None and out.name in ("", ".."):
        raise UsageError(f"--out is a file without ending; received {str(out)!r}")
    with Signals() as signals, contextlib.ExitStack() as held:
        say("Loading TensorFlow ...")
        load_tensorflow(debug)
        from der_tf import data
        from der_tf.evaluation import parts, suites
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
            if epsilon is not None:
                base = dataclasses.replace(
                    base,
                    epsilon=resolve({"norm": base.norm, "epsilon": epsilon}).epsilon,
                )
            ball: dict[str, Any] = {"epsilon": base.epsilon, "norm": base.norm}
            chosen = (
                suites.get(suite, batch_size=batch_size, denoiser=denoiser, **ball)
                if suite
                else _attacks(names, ball, steps=steps, restarts=restarts, denoiser=denoiser)
            )
            images = data.load(
                name,
                data_dir=data_dir or (base.data_dir if name == base.dataset else None),
                batch_size=batch_size,
                image_size=base.image_size if name == base.dataset else None,
            )
            classifier.check_images(name, images.input_shape)
            if num_examples is not None and num_examples > images.test_size:
                raise ValueError(
                    f"{name} has {images.test_size} test images; received --num-examples "
                    f"{num_examples}"
                )
        about = {
            "schema": 2,
            "suite": suite,
            "model": str(classifier.path),
            "dataset": name,
            "split": "test",
            "of": images.test_size,
            "seed": seed,
            "batch_size": batch_size,
            "threat_model": ball,
            "arguments": sys.argv[1:],
        }
        called = [*([suite] if suite else names), *(["defended"] if defend else [])]
        place = out or _default_place(classifier, called, num_examples)
        descent = defense.build() if defend else None
        with preparing():
            if out is None:
                _refuse_another(place, about, chosen, descent)
            held.enter_context(parts.held(_state(place)))
        _measure(classifier, images, chosen, descent, num_examples, about, place, signals)


def _names(
    suite: str | None, attacks: str | None, steps: int | None, restarts: int | None
) -> list[str]:
    """What --attacks names; none with a suite, which takes none of its options."""
    own = {"attacks": attacks, "steps": steps, "restarts": restarts}
    for option, value in own.items():
        if suite and value is not None:
            raise UsageError(
                f"--suite {suite} has its own attacks, and --{option} goes without it; received "
                f"--{option} {value}"
            )
    names = "fgsm,pgd" if attacks is None else attacks
    return [name.strip() for name in names.split(",") if name.strip()]


def _measure(
    classifier: Classifier,
    images: ImageData,
    attacks: dict[str, Any],
    defense: EnergyDescent | None,
    num_examples: int | None,
    about: dict[str, Any],
    place: Path,
    signals: Signals,
) -> None:
    """Run the attacks, show and write what they found."""
    from der_tf import evaluation as measure
    from der_tf.evaluation import card, inputs, parts, suites
    from der_tf.evaluation.diagnosis import diagnose

    provenance = card.provenance()  # of the code that measures, whatever is checked out meanwhile
    seed, suite = about["seed"], about["suite"]
    ball = (about["threat_model"]["norm"], about["threat_model"]["epsilon"])
    test = images.test
    if num_examples:
        mask = inputs.drawn(images.test_size, num_examples, seed)
        test = inputs.chosen(test, mask, images.batch_size)
    state = _state(place)
    diagnosis = None
    try:
        with (
            noticed() as warnings,
            attack_progress(num_examples or images.test_size) as progress,
            preparing(),
            signals.deferred(),
        ):

            def tell(*step: Any) -> None:
                progress(*step)
                signals.check()

            options: dict[str, Any] = {
                "attacks": attacks,
                "ball": ball,
                "seed": seed,
                "progress": tell,
            }
            result = measure.evaluate(
                classifier.model, test, state_path=state / "attacks", **options
            )
            samples, defended = result.samples(), {}
            seconds = {name: found.seconds for name, found in result.attacks.items()}
            if suite:
                diagnosis = diagnose(
                    classifier.model,
                    test,
                    result,
                    ball=ball,
                    batch_size=images.batch_size,
                    seed=seed,
                    state_path=state / "diagnosis",
                    progress=tell,
                )
            if defense:
                behind = measure.evaluate_defense(
                    classifier.model, defense, test, state_path=state / "defended", **options
                )
                samples |= behind.samples()
                seconds |= behind.seconds()
                defended = {"defense": measure.defense_to_dict(behind)}
    except Interrupted as interrupted:
        raise interrupted.add(
            f"what is measured is kept in {state}; the same command goes on"
        ) from None
    report = {
        **about,
        **measure.to_dict(result),
        **defended,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "warnings": warnings,
        "notes": suites.notes(suite, attacks, radius=ball[1]),
        "samples": f"{place.name}.npz",
        **provenance,
    }
    show_table(report, card.title(report))
    for warning in warnings:
        say(f"Warning: {warning}")
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        measure.save_samples(Path(f"{place}.npz"), samples)
        if diagnosis:
            from der_tf.evaluation import figures

            folder = place.with_name(f"{place.name}-figures")
            drawn = figures.draw(folder, result, diagnosis.targeted, diagnosis.curves, ball)
            report |= {
                "sanity": diagnosis.checks,
                "curves": diagnosis.curves,
                "figures": [f"{folder.name}/{name}" for name in drawn],
            }
            for check in diagnosis.checks:
                say(card.check_line(check))
        write_text(f"{place}.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
        write_text(f"{place}.md", card.to_card(report))
    parts.remove(state)
    say(f"Written to {place}.json, {place}.md and {place}.npz")


def _attacks(names: list[str], ball: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The attacks, with options where they take them; an option that none takes is refused."""
    from der_tf import attacks

    if not names:
        raise ValueError(f"--attacks takes names among {', '.join(attacks.names())}; received none")
    if len(set(names)) < len(names):
        raise ValueError(f"--attacks names each attack once; received {','.join(names)}")
    given = {option: value for option, value in options.items() if value is not None}
    restarts = given.get("restarts")
    taken: set[str] = set()
    chosen = {}
    for name in names:
        fields = attacks.fields(name)
        takes: dict[str, Any] = {
            option: value
            for option, value in given.items()
            if option in fields and option != "restarts"
        }
        # That one has a ball of its own: what lies in the evaluation's counts.
        own = {"epsilon": math.inf} if name == "cw" else ball
        attack: Any = attacks.get(name, **own, **takes)
        # Each restart of an attack without a random start would be the same.
        if restarts and "restarts" in fields and getattr(attack, "starts_at_random", True):
            takes["restarts"] = restarts
            attack = dataclasses.replace(attack, restarts=restarts)
        taken |= takes.keys()
        chosen[name] = attack
    for option in given.keys() - taken:
        raise ValueError(f"--{option} {given[option]} is not taken by {', '.join(names)}")
    return chosen


def _state(place: Path) -> Path:
    """Where the parts of an evaluation are until it is written."""
    return place.with_name(f"{place.name}.state")


def _default_place(classifier: Classifier, names: list[str], num_examples: int | None) -> Path:
    what = "-".join(names) + (f"-{num_examples}-images" if num_examples else "")
    if classifier.run:
        if classifier.path != classifier.run.best:
            what = f"{classifier.path.stem}-{what}"
        return classifier.run.path / "evaluations" / what
    return Path("runs") / "evaluations" / f"{classifier.title}-{what}"


def _refuse_another(
    place: Path, about: dict[str, Any], attacks: dict[str, Any], defense: EnergyDescent | None
) -> None:
    """ValueError where the default place holds what another command has measured."""
    from der_tf.evaluation.results import configuration

    def settings(report: dict[str, Any]) -> dict[str, Any]:
        found = {name: report.get(name) for name in ("dataset", "seed", "batch_size")}
        found["model"] = str(Path(report.get("model", "")).resolve())
        parts = {**report.get("attacks", {}), "the defence": report.get("defense", {})}
        for part, described in parts.items():
            fields = described.get("config", {})
            found |= {f"{name} of {part}": value for name, value in fields.items()}
        return found

    try:
        before = settings(json.loads(Path(f"{place}.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return  # nothing, or no report of this command: nothing to lose
    now = settings(
        {
            **about,
            "attacks": {name: {"config": configuration(a)} for name, a in attacks.items()},
            "defense": {"config": dict(defense.get_config())} if defense else {},
        }
    )
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{place}.json holds an evaluation with {name} {before.get(name)}; received "
                f"{now.get(name)}: name another place with --out"
            )
