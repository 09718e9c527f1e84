"""The sections of the report: what is measured, drawn and said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from der_tf import figures
from der_tf.analysis import along_step, curves, distributions, landscape
from der_tf.analysis.report import PAPER, Section
from der_tf.analysis.runs import Run
from der_tf.attacks.base import clean_logits
from der_tf.attacks.gradient import GradientAttack
from der_tf.evaluation import evaluate
from der_tf.evaluation.loading import Classifier
from der_tf.evaluation.report import fraction
from der_tf.evaluation.robustness import Progress
from der_tf.training.faults import writing
from der_tf.training.run import training_attack

# Images whose surroundings are drawn.
LANDSCAPES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What the sections measure that look at networks and not at the files of their training.

    Attributes:
        runs: with and without networks.
        networks: of each run, by its name, networks by what to call them.
        images: ``[N, H, W, C]`` validation images.
        labels: ``[N]``.
        seed: of random parts.
        place: folder of the pictures.
        say: takes a line of progress.
    """

    runs: Sequence[Run]
    networks: Mapping[str, Mapping[str, Classifier]]
    images: np.ndarray
    labels: np.ndarray
    seed: int
    place: Path
    say: Callable[[str], None]

    def with_networks(self) -> list[Run]:
        """The runs whose networks are here."""
        return [run for run in self.runs if self.networks[run.name]]

    def notes(self) -> list[str]:
        """A sentence on each of the others."""
        return [
            f"{run.name}: its networks are not here."
            for run in self.runs
            if not self.networks[run.name]
        ]

    def picture(self, kind: str, run: Run) -> Path:
        """The file of a picture of this run."""
        return self.place / f"{kind}-{_file_name(run)}.png"


def over_epochs(runs: Sequence[Run], place: Path) -> list[Section]:
    """dE(x) against the robust error, the share of abnormal samples, gradient alignment."""
    central, abnormal = place / "energy_and_error.png", place / "abnormality.png"
    _save(curves.energy_and_error(runs), central)
    _save(curves.abnormality(runs), abnormal)
    older = [run.name for run in runs if not run.energies]
    notes = [
        f"{', '.join(older)}: no energies.csv. The energies and abnormal samples are the means of "
        "metrics.csv over the training batches, while the weights still move; abnormal samples "
        "under PGD are those among validation images; gradient alignment is not known."
    ]
    return [
        Section(
            title="dE(x) and robust error over the epochs",
            pictures=[(central, "Mean dE(x) of training images, and robust validation error")],
            caption="The figure by which the paper tells two failures apart. Catastrophic "
            "overfitting: dE(x) jumps up within an epoch as the error under PGD goes to 100 %. "
            "Robust overfitting: dE(x) keeps falling as the robust error rises again. A sound "
            "training keeps dE(x) near a constant. x* is that of the training attack; the error "
            "is that of PGD on all validation images (the paper shows test images: here they are "
            "left for the one measurement at the end). The band holds the middle half of the "
            f"samples. After {PAPER}, section 4.",
            notes=notes if older else [],
        ),
        Section(
            title="Abnormal samples and gradient alignment",
            pictures=[(abnormal, "Share of abnormal training samples, and gradient alignment")],
            caption="A sample is abnormal when its loss is lower after the attack than before, "
            "CE(x*, y) < CE(x, y) (Lin et al., AAER, 2023). Many of them under the single-step "
            "training attack, which means that its step overshoots, are a sign of catastrophic "
            "overfitting. Alignment is the mean cosine of the loss gradients at x and at a random "
            "point of the ball around it (Andriushchenko and Flammarion, GradAlign, 2020): near 1 "
            "the loss is linear there, so that one step is enough; it falls towards 0 with "
            "catastrophic overfitting.",
            notes=notes if older else [],
        ),
    ]


def samples(runs: Sequence[Run], wanted: Sequence[int] | None, place: Path) -> Section:
    """E(x) and dE(x) of single samples at the wanted epochs."""
    pictures, notes = [], []
    for run in runs:
        epochs = distributions.chosen_epochs(run, wanted)
        if epochs:
            path = place / f"samples-{_file_name(run)}.png"
            _save(distributions.joint_distribution(run, epochs), path)
            pictures.append((path, f"{run.name}: training images under the training attack"))
        else:
            which = f" of epochs {', '.join(map(str, wanted))}" if wanted else ""
            notes.append(f"{run.name} has no energies of single samples{which}.")
    return Section(
        title="E(x) and dE(x) of single samples",
        pictures=pictures,
        caption="Each point is a training image. To the left are images that the network finds "
        "likely (low E(x)). Above zero, the attack has lowered the energy: to the network x* is "
        "more likely than x, as PGD does it; below zero it has raised it. Energies that drift "
        "left and spread tell of growing logits. Catastrophic overfitting turns most samples "
        f"abnormal (triangles) between two epochs. After {PAPER}, section 4.",
        notes=notes,
    )


def landscapes(measured: Measured) -> Section:
    """Loss landscapes around the first images that every network classifies rightly."""
    images, labels = measured.images, measured.labels
    right = np.ones(len(labels), bool)
    for of_run in measured.networks.values():
        for network in of_run.values():
            right &= np.argmax(clean_logits(network.model, images, 128), axis=1) == labels
    # Those first that every network classifies rightly: their loss has the farthest to rise.
    chosen = np.argsort(~right, kind="stable")[:LANDSCAPES]
    x, y = images[chosen], labels[chosen]
    which = "The images are the first of those drawn that every network classifies rightly."
    if not right[chosen].all():
        which = f"Of the images every network classifies {right[chosen].sum()} rightly."
    pictures = []
    for run in measured.with_networks():
        surfaces = {}
        for name, network in measured.networks[run.name].items():
            measured.say(f"{run.name}, {name}: loss around {len(x)} images ...")
            found = landscape.planes(
                network.model, x, y, run.config.epsilon, run.config.norm, measured.seed
            )
            surfaces[name] = [landscape.surface(network.model, plane) for plane in found]
        names = [f"class {run.class_names[label]}" for label in y]
        path = measured.picture("landscape", run)
        _save(landscape.loss_landscape(surfaces, names, fraction(run.config.epsilon)), path)
        pictures.append((path, f"{run.name}: cross-entropy around validation images"))
    return Section(
        title="Loss landscape",
        pictures=pictures,
        caption="Cross-entropy at x + a (x* - x) + b r, clipped to [0, 1]: x* is that of FGSM "
        "against the network shown, r a random step of the same size in its norm. The "
        "circle is x, the square x*, and both axes are in units of the radius ε. In a robust "
        "network the loss rises steadily from x to x* and is highest there. After catastrophic "
        "overfitting it is distorted: low at x and low again at x*, where the network was trained, "
        "with a peak between them that PGD finds (Kim et al., Understanding Catastrophic "
        f"Overfitting in Single-step Adversarial Training, 2021). {which}",
        notes=measured.notes(),
    )


def steps(measured: Measured) -> Section:
    """E(x, y) on the way of the training attack."""
    pictures, notes = [], measured.notes()
    for run in measured.with_networks():
        attack = training_attack(run.config)
        if not isinstance(attack, GradientAttack):
            notes.append(f"{run.name}: its training attack has no start and no step.")
            continue
        found = {}
        for name, network in measured.networks[run.name].items():
            measured.say(f"{run.name}, {name}: energy along the step of {run.config.attack} ...")
            found[name] = along_step.way(
                network.model, attack, measured.images, measured.labels, measured.seed
            )
        path = measured.picture("step", run)
        _save(along_step.energy_along_the_step(found), path)
        pictures.append((path, f"{run.name}: {len(measured.images)} validation images"))
    return Section(
        title="Energy along the step of the training attack",
        pictures=pictures,
        caption="How far E(·, y) lies above E(x, y) on the way from the start of the training "
        "attack to its x*, and from x to it: means, and bands of the middle half of the images; at "
        "x* it is -dE(x, y). An attack that finds the worst of its neighbourhood ends where "
        "the energy is highest, near that of PGD. A network that gives in "
        "to single steps raises the energy on the way and lowers it again towards x* (as the loss "
        "in Kim et al., Understanding Catastrophic Overfitting in Single-step Adversarial "
        "Training, 2021); under DER both ends may be as the penalty wants them, and the peak "
        f"stands between. A peak is an energy {along_step.PEAK} nats above that of x*.",
        notes=notes,
    )


def energies(
    measured: Measured, progress: Callable[[int], AbstractContextManager[Progress]]
) -> Section:
    """E(x) and E(x, y) of the images as they are and under attacks."""
    images = measured.images
    pictures = []
    for run in measured.with_networks():
        chosen = distributions.attacks_of_energies(run.config.epsilon, run.config.norm)
        found = {}
        for name, network in measured.networks[run.name].items():
            measured.say(f"{run.name}, {name}: attacking {len(images)} validation images ...")
            with progress(len(images)) as tell:
                found[name] = evaluate(
                    network.model,
                    images,
                    measured.labels,
                    attacks=chosen,
                    seed=measured.seed,
                    progress=tell,
                )
        path = measured.picture("energies", run)
        _save(distributions.energies_under_attack(found), path)
        pictures.append((path, f"{run.name}: {len(images)} validation images"))
    return Section(
        title="Energies of natural and attacked images",
        pictures=pictures,
        caption="Attacks raise E(x, y), that is, they lower the logit of the true class. In the "
        "networks of the paper untargeted PGD lowers E(x), so that its images look likelier to the "
        "network than natural ones, and PGD towards a wrong class (here one drawn at random) "
        "raises E(x). The farther the curve of an attack lies from the natural one, the farther "
        "the network lets it move the logits; where FGSM lies on the natural curve and PGD does "
        "not, the network has overfitted to single steps. "
        f"PGD takes 10 steps of ε/4. After {PAPER}, section 3, and Mirza et al., Shedding More "
        "Light on Robust Classifiers under the Lens of Energy-based Models, arXiv 2407.06315.",
        notes=measured.notes(),
    )


def _file_name(run: Run) -> str:
    return run.name.strip("/").replace("/", "-")


def _save(figure: Figure, path: Path) -> None:
    with writing(path):
        figures.save(figure, path)
