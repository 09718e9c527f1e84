"""The experiments as tables of settings: names -> options of ``der-tf train``.

An experiment trains each of its cures at each radius of a scale with several seeds: ``tiny`` in
about a minute a run on a free core, ``small`` in about ten, ``full`` in the setting of the papers.
Needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from der_tf.training.recipes import Configuration, resolve

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is trained and measured.

    Attributes:
        name: of ``--scale``.
        options: of every run; those of a cure come first.
        levels: radii of the ball in 1/255.
        seeds: runs of each row, of seeds 0, 1, ...
        test_images: the first so many test images are attacked; None: all.
        steps: of PGD on them.
        restarts: of PGD on them.
        auto_attack_images: the first so many get AutoAttack; 0: none.
    """

    name: str
    options: Options
    levels: tuple[int, ...]
    seeds: int
    test_images: int | None
    steps: int
    restarts: int
    auto_attack_images: int

    @property
    def measured(self) -> dict[str, int | None]:
        """How test images are measured: results compare where this is the same."""
        names = ("test_images", "steps", "restarts", "auto_attack_images")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One setting, trained with several seeds.

    Attributes:
        cure: its name in the experiment's table.
        level: radius in 1/255.
        options: of ``der-tf train``, without the seed.
    """

    cure: str
    level: int
    options: Options

    @property
    def name(self) -> str:
        """CURE-LEVEL, which is what ``--only`` selects by."""
        return f"{self.cure}-{self.level}"

    def configuration(self, seed: int, data_dir: str | None = None) -> Configuration:
        """The whole configuration of the run with this seed.

        Raises:
            ValueError: for an option that the run would not read.
        """
        return resolve({**self.options, "seed": seed, "data_dir": data_dir})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question and the runs that answer it.

    Attributes:
        name: of the command.
        question: in a sentence.
        cures: epochs -> name -> options. The first is the plain setting, by which times
            are divided.
        scales: by name.
    """

    name: str
    question: str
    cures: Callable[[int], Mapping[str, Options]]
    scales: Mapping[str, Scale]

    def rows(self, scale: Scale, only: Sequence[str] = ()) -> list[Row]:
        """The rows of a scale.

        Args:
            only: names, also with ``*``: ``none-16``, ``der-*``. Default: all.

        Raises:
            ValueError: for a name that no row has.
        """
        rows = [
            Row(
                cure=cure,
                level=level,
                options={**scale.options, "epsilon": level / 255, **options},
            )
            for level in scale.levels
            for cure, options in self.cures(scale.options["epochs"]).items()
        ]
        names = [row.name for row in rows]
        for pattern in only:
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"--only names rows of {self.name}, which are {', '.join(names)}; received "
                    f"{pattern}"
                )
        chosen = {name for pattern in only or ("*",) for name in fnmatch.filter(names, pattern)}
        return [row for row in rows if row.name in chosen]


# The form of DER in the paper, which is not the default of single-step attacks.
PAPER = {"der_penalty": "squared", "der_reference": "natural"}


def _catastrophic(epochs: int) -> dict[str, Options]:
    """Single-step training with each cure, and multi-step training to compare with."""
    n_fgsm = {"attack": "n_fgsm"}
    square_and_hinge = {"der_penalty": "squared_plus_hinge", "der_weight": 10.0}
    square_and_hinge_natural = {**square_and_hinge, "der_weight": 5.0, "der_reference": "natural"}
    squared = {"der_penalty": "squared", "der_weight": 10.0}
    return {
        "none": {"der_weight": 0},
        "der": {},
        "der-squared-plus-hinge": square_and_hinge,
        "der-squared-plus-hinge-natural": square_and_hinge_natural,
        "der-squared": squared,
        "der-paper": {**PAPER, "der_weight": 10.0},
        "n-fgsm": {**n_fgsm, "der_weight": 0},
        "n-fgsm-der-30": {**n_fgsm, "der_weight": 30.0},
        "n-fgsm-der-squared-plus-hinge": {**n_fgsm, **square_and_hinge},
        "n-fgsm-der-squared-plus-hinge-natural": {**n_fgsm, **square_and_hinge_natural},
        "n-fgsm-der-squared": {**n_fgsm, **squared},
        "n-fgsm-der-paper-5": {**n_fgsm, **PAPER, "der_weight": 5.0},
        "n-fgsm-der-paper-20": {**n_fgsm, **PAPER, "der_weight": 20.0},
        "grad-align": {"recipe": "grad_align", "attack": "fgsm"},
        "aaer": {"recipe": "aaer", "attack": "n_fgsm"},
        "pgd-5": {"recipe": "rs_fgsm", "attack": "pgd", "steps": 5},
    }


def _robust(epochs: int) -> dict[str, Options]:
    """Multi-step training with each cure, far beyond the first decay of the learning rate."""
    return {
        "none": {},
        "der-3": {"der_weight": 3.0},
        "der-10": {"der_weight": 10.0},
        "der-30": {"der_weight": 30.0},
        "der-30-both": {"der_weight": 30.0, "der_marginal": 1.0},
        "awp": {"awp_gamma": 0.005},
        "ema": {"ema": 0.99},
        # The averages begin after the first decay of the learning rate.
        "swa": {"swa_start": epochs // 2 + 1},
        "early-stopping": {"early_stopping": max(1, epochs // 10)},
        # On the schedule of the others: its decay is where robust overfitting begins.
        "weat": {"recipe": "weat", "attack": "trades", "schedule": "piecewise"},
    }


def _ablation(epochs: int) -> dict[str, Options]:
    """DER in every form: one thing changed at a time from weight 30, then from the paper's."""
    paper = {**PAPER, "der_weight": 10.0}
    forms: dict[str, Options] = {
        "absolute": {"der_penalty": "absolute"},
        "huber": {"der_penalty": "huber"},
        "squared": {"der_penalty": "squared"},
        "squared-hinge": {"der_penalty": "squared_hinge"},
        "squared-plus-hinge": {"der_penalty": "squared_plus_hinge"},
        "marginal": {"der_marginal": 1.0, "der_joint": 0.0},
        "both": {"der_marginal": 1.0},
        "natural": {"der_reference": "natural"},
        "interior": {"der_reference": "interior"},
        "path": {"der_reference": "path"},
        "warm-up": {"der_warmup_epochs": epochs / 2},
        # Half as many passes more, or a quarter.
        "interval-2": {"der_interval": 2},
        "interval-4": {"der_interval": 4},
        # No pass more than the attack's own.
        "free": {"der_detached": True},
    }
    return {
        "none": {"der_weight": 0},
        **{f"weight-{weight}": {"der_weight": float(weight)} for weight in (3, 10, 30, 100)},
        "weight-100-warm-up": {"der_weight": 100.0, "der_warmup_epochs": epochs / 2},
        **{name: {"der_weight": 30.0, **form} for name, form in forms.items()},
        "free-squared-hinge": {
            "der_penalty": "squared_hinge",
            "der_weight": 10.0,
            "der_detached": True,
        },
        "paper": paper,
        "paper-both": {**paper, "der_marginal": 1.0},
        "paper-interior": {**paper, "der_reference": "interior"},
    }


def _scales(*scales: Scale) -> Mapping[str, Scale]:
    return {scale.name: scale for scale in scales}


_TINY = {"dataset": "cifar10", "width": 4, "validation_size": 250, "energy_images": 0}
_TINY_FAST = {**_TINY, "attack": "rs_fgsm", "limit_train": 2560, "batch_size": 64, "epochs": 6}
# That of our pilot, where plain RS-FGSM collapsed at 16/255 in the third epoch.
_SMALL_FAST = {
    "dataset": "cifar10",
    "width": 16,
    "attack": "rs_fgsm",
    "limit_train": 10_000,
    "validation_size": 500,
    "energy_images": 0,
    "epochs": 8,
}
# An accelerator is faster than the look at every step.
_FULL_NETWORK = {"dataset": "cifar10", "width": 64, "steps_per_execution": 10}
_FULL_FAST = {**_FULL_NETWORK, "attack": "rs_fgsm", "epochs": 30}
_MULTI_STEP = {"dataset": "cifar10", "attack": "pgd"}
_TINY_MEASURES: dict[str, Any] = {
    "name": "tiny",
    "test_images": 500,
    "steps": 20,
    "restarts": 1,
    "auto_attack_images": 0,
}
_SMALL_MEASURES: dict[str, Any] = {**_TINY_MEASURES, "name": "small", "test_images": 1000}
_FULL_MEASURES: dict[str, Any] = {
    "name": "full",
    "test_images": None,
    "steps": 50,
    "restarts": 10,
    "auto_attack_images": 1000,
}

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="catastrophic-overfitting",
            question="Does single-step training keep its robustness to PGD?",
            cures=_catastrophic,
            scales=_scales(
                Scale(options=_TINY_FAST, levels=(8, 16), seeds=3, **_TINY_MEASURES),
                Scale(options=_SMALL_FAST, levels=(8, 16, 24), seeds=3, **_SMALL_MEASURES),
                Scale(options=_FULL_FAST, levels=(8, 16, 24), seeds=3, **_FULL_MEASURES),
            ),
        ),
        Experiment(
            name="robust-overfitting",
            question="Does multi-step training keep the robustness of its best epoch?",
            cures=_robust,
            scales=_scales(
                Scale(
                    options={
                        **_TINY,
                        **_MULTI_STEP,
                        "steps": 3,
                        "limit_train": 640,
                        "batch_size": 32,
                        "epochs": 40,
                    },
                    levels=(8,),
                    seeds=3,
                    **_TINY_MEASURES,
                ),
                Scale(
                    options={
                        **_MULTI_STEP,
                        # Few images are learned by heart within minutes: 95 % of them are robust
                        # in the end. 1,000 images were not in 80 epochs.
                        "steps": 3,
                        "step_size": 4 / 255,
                        "attack_batch_norm": "inference",
                        "width": 16,
                        "limit_train": 300,
                        "validation_size": 200,
                        "validation_steps": 3,
                        "batch_size": 16,
                        "epochs": 240,
                        "milestones": (0.4, 0.9),
                    },
                    levels=(8,),
                    seeds=3,
                    **_SMALL_MEASURES,
                ),
                Scale(
                    options={**_FULL_NETWORK, "attack": "pgd", "epochs": 200},
                    levels=(8,),
                    seeds=3,
                    **_FULL_MEASURES,
                ),
            ),
        ),
        Experiment(
            name="der-ablation",
            question="Which form of DER holds? Judged on validation images.",
            cures=_ablation,
            scales=_scales(
                Scale(options=_TINY_FAST, levels=(8, 16), seeds=1, **_TINY_MEASURES),
                Scale(options=_SMALL_FAST, levels=(8, 16), seeds=1, **_SMALL_MEASURES),
                Scale(options=_FULL_FAST, levels=(8, 16), seeds=3, **_FULL_MEASURES),
            ),
        ),
    )
}
