"""Published settings by name, and how the options of a run are filled in from them.

A run's configuration is the options given, then what its data set asks for (:data:`DATASETS`),
then its recipe (:data:`RECIPES`), then the defaults of :class:`Configuration`. This module needs
no TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

EPSILON = 8 / 255
L2_EPSILON = 128 / 255  # the field's radius for CIFAR, used for every data set
SINGLE_STEP = ("fgsm", "rs_fgsm", "n_fgsm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """Everything that decides the outcome of a run; the fields are the options of `der-tf train`.

    Radii and steps are in pixels of [0, 1]. A ``step_size`` of None is the attack's own.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    limit_train: int | None = None
    validation_size: int | None = None
    image_size: int | None = None
    seed: int = 0
    recipe: str = "rs_fgsm"
    # The attack in training, and the ball of every attack of the run.
    attack: str = "rs_fgsm"
    norm: str = "linf"
    epsilon: float = EPSILON
    step_size: float | None = None
    steps: int | None = None
    attack_batch_norm: str = "train"
    # The outer loss.
    objective: str = "madry"
    beta: float | None = None
    label_smoothing: float = 0.0
    der_weight: float = 0.0
    der_marginal: float = 0.0
    der_joint: float = 1.0
    der_penalty: str = "hinge"
    der_reference: str = "start"
    der_detached: bool = False
    der_warmup_epochs: float = 0.0
    der_interval: int = 1
    grad_align_weight: float = 0.0
    grad_align_full_gradient: bool = False
    aaer_weight: float = 0.0
    aaer_loss: float = 4.0
    aaer_logits: float = 1.5
    aaer_full_gradient: bool = False
    aaer_warmup_epochs: float = 0.0
    awp_gamma: float = 0.0
    awp_warmup_epochs: float = 0.0
    # The network and its optimization.
    model: str = "preact_resnet18"
    width: int | None = None
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: str = "piecewise"
    milestones: tuple[float, ...] = (0.5, 0.75)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.0
    swa_start: int = 0
    early_stopping: int = 0
    mixed_precision: bool = False
    steps_per_execution: int = 1
    # PGD at the end of each epoch (validation) and of the run (test).
    validation_steps: int = 10
    evaluation_steps: int = 20
    evaluation_restarts: int = 1
    # Energies of fixed samples: images a split (None: as many as are cheap), steps between records.
    energy_images: int | None = None
    energy_every: int = 0
    # What follows when robustness to PGD is lost: "off", "warn", "stop" or "roll-back".
    overfitting_guard: str = "warn"

    @property
    def name(self) -> str:
        """DATASET-ATTACK: what run directories and exports are called by default."""
        return f"{self.dataset}-{self.attack}"

    def for_card(self) -> dict[str, Any]:
        """What a model card tells: everything but where the data lay on this machine."""
        return {**dataclasses.asdict(self), "data_dir": None}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Configuration:
        """From what JSON keeps of ``dataclasses.asdict``.

        Raises:
            KeyError, TypeError: when a field without a default is missing, or one is unknown.
        """
        # What runs did before there were such options.
        before = {
            "energy_images": 0,
            "overfitting_guard": "off",
            "grad_align_full_gradient": bool(stored.get("grad_align_weight")),
        }
        return cls(**{**before, **stored, "milestones": tuple(stored["milestones"])})


def _table(**rows: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType({name: MappingProxyType(dict(row)) for name, row in rows.items()})


_FAST = {"epochs": 30, "schedule": "cyclic", "learning_rate": 0.2, "attack_batch_norm": "train"}

# Batch 128, SGD with momentum 0.9 and coupled weight decay 5e-4 where a row says nothing else.
# Where a step size stands here as None, it is in proportion to epsilon and equals the published
# value at 8/255: alpha = 10/255 for RS-FGSM, eps for N-FGSM, 2/255 for PGD, 0.007 for TRADES.
RECIPES = _table(
    # Wong et al., "Fast is better than free" (2020): 30 epochs are those of the comparisons that
    # followed (method of GradAlign and N-FGSM), its own best takes 15.
    rs_fgsm={**_FAST, "attack": "rs_fgsm"},
    fgsm={**_FAST, "attack": "fgsm"},
    # de Jorge et al., "Make some noise" (2022).
    n_fgsm={**_FAST, "attack": "n_fgsm"},
    # Andriushchenko and Flammarion (2020): from x itself. The weight goes by the radius.
    grad_align={**_FAST, "attack": "fgsm", "learning_rate": 0.3},
    # Lin et al. (2023), with the noise of N-FGSM; lambda_2 and lambda_3 are those of AAER. Their
    # peak of 0.05 and their warm-up of the attack's step over five epochs are for SVHN.
    aaer={**_FAST, "attack": "n_fgsm", "aaer_weight": 1.0},
    # Madry et al. (2018) as Rice et al., "Overfitting in adversarially robust deep learning"
    # (2020), train it.
    pgd={
        "attack": "pgd",
        "steps": 10,
        "epochs": 200,
        "schedule": "piecewise",
        "learning_rate": 0.1,
        "milestones": (0.5, 0.75),
        "attack_batch_norm": "train",
    },
    # Zhang et al. (2019).
    trades={
        "attack": "trades",
        "steps": 10,
        "objective": "trades",
        "beta": 6.0,
        "epochs": 100,
        "schedule": "piecewise",
        "learning_rate": 0.1,
        "milestones": (0.75, 0.9),
        "weight_decay": 2e-4,
        "attack_batch_norm": "inference",
    },
    # Mirza et al., "Shedding more light on robust classifiers" (2024).
    weat={
        "attack": "trades",
        "steps": 10,
        "objective": "weat",
        "beta": 6.0,
        "epochs": 100,
        "schedule": "one_cycle",
        "learning_rate": 0.1,
        "attack_batch_norm": "inference",
    },
)

# What a data set asks for, whatever the recipe. Any other name gets the last row.
DATASETS = _table(
    # 8x8 images of 1,295 training samples: epsilon 0.1 is 1.6 of the 16 grey levels. The
    # schedule is shortened to minutes on 2 cores.
    digits={
        "model": "convnet",
        "epsilon": 0.1,
        "epochs": 30,
        "batch_size": 64,
        "learning_rate": 0.05,
        "evaluation_steps": 50,
        "evaluation_restarts": 10,
    },
    cifar10={"model": "preact_resnet18", "epsilon": EPSILON},
    cifar100={"model": "preact_resnet18", "epsilon": EPSILON},
    imagenet={"model": "resnet50", "epsilon": 4 / 255},
    other={"model": "preact_resnet18", "epsilon": EPSILON},
)

# DER by attack. For single-step attacks, form and weight are the cheapest of those tried that held
# at 8/255 and 16/255 on 10,000 images (width 16, three seeds of RS-FGSM; judged by PGD on
# validation images, `der-tf reproduce catastrophic-overfitting --scale small`), and at 8/255 on
# all of CIFAR-10. The others' is off, as multi-step training does not collapse; in robust
# overfitting the energies part on the negative side, which a hinge does not see.
_SINGLE_STEP_DER = {"der_weight": 30.0, "der_penalty": "hinge", "der_reference": "start"}
DER = _table(
    rs_fgsm=_SINGLE_STEP_DER,
    n_fgsm=_SINGLE_STEP_DER,
    fgsm=_SINGLE_STEP_DER,
    other={"der_weight": 0.0, "der_penalty": "squared", "der_reference": "natural"},
)

# AAER's lambda_2 and lambda_3 for CIFAR-10 by attack and l-inf radius in 1/255, from its authors'
# README. A radius between two has those of the smaller one.
AAER = MappingProxyType(
    {
        "n_fgsm": {8: (1.5, 0.15), 12: (5.0, 0.55), 16: (8.5, 1.5), 32: (3.5, 0.7)},
        "rs_fgsm": {8: (2.5, 1.5), 12: (5.0, 2.5), 16: (7.0, 3.25), 32: (6.0, 1.5)},
    }
)

# From this l-inf radius on DER weighs more with FGSM and RS-FGSM on CIFAR, after a warm-up over so
# many images. At 16/255 the weight of the table lets RS-FGSM collapse on all of CIFAR-10, N-FGSM
# not (`train.py --dataset cifar10 --width 16 --attack rs_fgsm --epsilon 16/255 --epochs 12`).
# Without a warm-up training on few images may learn nothing; one over 200,000 images let all of
# CIFAR-10 collapse (docs/results.md). FGSM and CIFAR-100 follow, unmeasured. Digits lose robustness
# by that weight (`make train ARGS="--der-weight 100"`): other data sets keep that of the table.
_LARGE_RADIUS = 12 / 255
_LARGE_RADIUS_WEIGHT = 100.0
_LARGE_RADIUS_WARMUP = 40_000
_CIFAR_IMAGES = 50_000


def recipe_of(attack: str) -> str:
    """The recipe that training with this attack follows: its own, or that of multi-step PGD."""
    return attack if attack in RECIPES else "pgd"


def resolve(given: Mapping[str, Any]) -> Configuration:
    """The whole configuration of a run.

    Args:
        given: fields of :class:`Configuration` that were set by hand (None: not set).

    Raises:
        ValueError: for an unknown recipe, or an option that this run would not read.
    """
    given = {name: value for name, value in given.items() if value is not None}
    recipe = given.get("recipe") or recipe_of(given.get("attack", Configuration.attack))
    if recipe not in RECIPES:
        raise ValueError(f"a recipe is one of {', '.join(RECIPES)}; received {recipe!r}")
    dataset = DATASETS.get(given.get("dataset", Configuration.dataset), DATASETS["other"])
    filled = {**RECIPES[recipe], **dataset, **given, "recipe": recipe}
    if filled.get("objective") != RECIPES[recipe].get("objective") and "beta" not in given:
        filled.pop("beta", None)  # the recipe's is that of its own objective
    if filled.get("norm") == "l2" and "epsilon" not in given:
        filled["epsilon"] = L2_EPSILON
    filled = {**_baseline_weights(filled), **filled}
    filled = {**_der(filled), **filled}
    if filled.get("norm") != "l2" and filled["epsilon"] > 1:
        raise ValueError(
            f"epsilon is in pixels of [0, 1]; received {filled['epsilon']:g} "
            f"(did you mean {filled['epsilon']:g}/255?)"
        )
    if filled.get("swa_start", 0) > filled["epochs"]:
        raise ValueError(
            f"--swa-start is an epoch of the run, 1 to {filled['epochs']}; "
            f"received {filled['swa_start']}"
        )
    for name, reason in _unread(filled).items():
        if name in given:
            raise ValueError(f"{option(name)} {reason}; received {given[name]}")
        filled.pop(name, None)
    return Configuration(**filled)


def _is_linf_on_cifar(filled: Mapping[str, Any]) -> bool:
    is_cifar = filled.get("dataset", Configuration.dataset) in ("cifar10", "cifar100")
    return is_cifar and filled.get("norm", Configuration.norm) == "linf"


def _baseline_weights(filled: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of GradAlign and AAER for a run so configured."""
    # They were chosen on CIFAR-10: other data and balls get those of the usual radius.
    radius = round(filled["epsilon"] * 255, 3) if _is_linf_on_cifar(filled) else 8
    weights = {}
    if filled["recipe"] == "grad_align":
        # Its authors' rule, which they give up to 16/255.
        weights["grad_align_weight"] = round(0.02 * 10 ** (min(radius, 16) / 8), 3)
    if filled["attack"] in AAER and filled.get("aaer_weight"):
        table = AAER[filled["attack"]]
        level = max((level for level in table if level <= radius), default=min(table))
        weights["aaer_loss"], weights["aaer_logits"] = table[level]
    return weights


def _der(filled: Mapping[str, Any]) -> dict[str, Any]:
    """Form and weight of DER for a run so configured."""
    der = dict(DER.get(filled["attack"], DER["other"]))
    is_large = _is_linf_on_cifar(filled) and filled["epsilon"] >= _LARGE_RADIUS
    if is_large and filled["attack"] in ("fgsm", "rs_fgsm") and "der_weight" not in filled:
        images = min(filled.get("limit_train") or _CIFAR_IMAGES, _CIFAR_IMAGES)
        der["der_weight"] = _LARGE_RADIUS_WEIGHT
        # Of few images the weight is to be complete for half of the training.
        der["der_warmup_epochs"] = min(_LARGE_RADIUS_WARMUP / images, filled["epochs"] / 2)
    if filled.get("grad_align_weight") or filled.get("aaer_weight"):
        der["der_weight"] = 0.0  # they are there to be compared with
    return der


def option(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as they are typed after ``der-tf train``."""
    typed = []
    for name, value in options.items():
        if value is True:
            typed.append(option(name))
        elif name in ("epsilon", "step_size"):
            typed.append(f"{option(name)}={round(value * 255)}/255")
        elif isinstance(value, tuple):
            typed += [option(name), *(f"{part:g}" for part in value)]
        else:
            text = f"{value:g}" if isinstance(value, float) else value
            typed.append(f"{option(name)}={text}")
    return typed


def _unread(filled: Mapping[str, Any]) -> dict[str, str]:
    """Fields that a run so configured does not read, and why."""
    unread = {}
    attack = filled["attack"]
    if attack in SINGLE_STEP:
        unread["steps"] = f"belongs to multi-step attacks such as pgd, {attack} takes one step"
    if attack == "fgsm":
        unread["step_size"] = "belongs to other attacks, fgsm steps by epsilon"
    if filled.get("objective", Configuration.objective) == "madry":
        unread["beta"] = "belongs to the objectives trades, mart and weat, this run's is madry"
    if filled.get("schedule", Configuration.schedule) != "piecewise":
        unread["milestones"] = (
            f"belongs to --schedule piecewise, this run's is {filled['schedule']}"
        )
    if not filled.get("der_weight", Configuration.der_weight):
        for field in dataclasses.fields(Configuration):
            if field.name.startswith("der_") and field.name != "der_weight":
                unread[field.name] = "belongs to DER, which is off in this run (--der-weight is 0)"
    if not filled.get("grad_align_weight"):
        unread["grad_align_full_gradient"] = (
            "belongs to GradAlign, which is off in this run (--grad-align-weight is 0)"
        )
    if not filled.get("aaer_weight"):
        for name in ("loss", "logits", "full_gradient", "warmup_epochs"):
            unread[f"aaer_{name}"] = (
                "belongs to AAER, which is off in this run (--aaer-weight is 0)"
            )
    if not filled.get("awp_gamma"):
        unread["awp_warmup_epochs"] = "belongs to AWP, which is off in this run (--awp-gamma is 0)"
    if filled.get("energy_images") == 0:
        unread["energy_every"] = "belongs to the energies, which are off (--energy-images is 0)"
    return unread
