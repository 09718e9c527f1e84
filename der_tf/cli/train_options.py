"""The options of ``der-tf train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from der_tf.cli.console import (
    Count,
    FolderName,
    NotNegative,
    Seed,
    Share,
    Whole,
    flag,
    option,
)
from der_tf.cli.loss_options import LossOptions

_DATA = Group("Data", sort_key=1)
_ATTACK = Group("Attack in training", sort_key=2)
_NETWORK = Group("Network and optimization", sort_key=4)
_MEASURE = Group("Measurement (PGD in the same ball)", sort_key=5)
_RUN = Group("Run", sort_key=6)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(LossOptions):
    """Options by the names of :class:`~der_tf.training.recipes.Configuration`, and of the run.

    None: not given. Then the data set decides, else the recipe, as the help texts say.
    """

    dataset: Annotated[
        str | None,
        option(
            _DATA,
            "digits, cifar10, cifar100, imagenet, folder, or any image-classification data set of "
            "TFDS. Default: digits.",
        ),
    ] = None
    data_dir: Annotated[
        Path | None,
        option(
            _DATA,
            "Where the prepared data sets lie; for folder, the folder with train/CLASS/*. Default: "
            "that of TFDS.",
        ),
    ] = None
    limit_train: Annotated[
        Count | None, option(_DATA, "Train on this many images only. Default: all.")
    ] = None
    validation_size: Annotated[
        Count | None,
        option(
            _DATA,
            "Images taken off the training part to validate on. Default: 2 % of it, at least 500 "
            "or 10 % (the smaller), at most 5,000.",
        ),
    ] = None
    image_size: Annotated[
        Count | None,
        option(
            _DATA, "Side in pixels that folder and TFDS images get. Default: their own, or 224."
        ),
    ] = None
    seed: Annotated[
        Seed | None,
        option(_DATA, "Of the first weights, order, augmentation and attacks. Default: 0."),
    ] = None

    attack: Annotated[
        str | None,
        option(
            _ATTACK,
            "fgsm, rs_fgsm, n_fgsm, pgd, mim or trades; it also chooses the recipe. Default: the "
            "recipe's, rs_fgsm without one.",
        ),
    ] = None
    epsilon: Annotated[
        NotNegative | None,
        option(
            _ATTACK,
            "Radius of the ball in pixels of [0, 1], such as 8/255 or 0.031. Default: the data "
            "set's: 8/255, digits 0.1, imagenet 4/255; 128/255 in l2.",
        ),
    ] = None
    norm: Annotated[
        Literal["linf", "l2"] | None, option(_ATTACK, "Norm of the ball. Default: linf.")
    ] = None
    step_size: Annotated[
        NotNegative | None,
        option(
            _ATTACK,
            "Step of the attack in pixels. Default: the attack's: rs_fgsm 1.25 epsilon, n_fgsm "
            "epsilon, pgd and mim epsilon/4, trades 0.223 epsilon.",
        ),
    ] = None
    steps: Annotated[
        Count | None, option(_ATTACK, "Steps of a multi-step attack. Default: the recipe's: 10.")
    ] = None
    attack_batch_norm: Annotated[
        Literal["train", "inference"] | None,
        option(
            _ATTACK,
            "Mode of batch norm while the attack runs. Default: the recipe's: train, for trades "
            "and weat inference.",
        ),
    ] = None

    recipe: Annotated[
        Literal["rs_fgsm", "fgsm", "n_fgsm", "grad_align", "aaer", "pgd", "trades", "weat"] | None,
        option(
            _NETWORK,
            "Published setting that fills in what is not given. Default: the attack's, pgd for an "
            "attack without one.",
        ),
    ] = None
    model: Annotated[
        str | None,
        option(
            _NETWORK,
            "convnet, preact_resnet18, resnet50 or wide_resnet-DEPTH-WIDTH. Default: the data "
            "set's: preact_resnet18, digits convnet, imagenet resnet50.",
        ),
    ] = None
    width: Annotated[
        Count | None,
        option(
            _NETWORK,
            "Filters of the first stage of convnet and preact_resnet18. Default: the model's: "
            "32 and 64.",
        ),
    ] = None
    epochs: Annotated[
        Count | None,
        option(
            _NETWORK,
            "Passes over the training set. Default: the recipe's: pgd 200, trades and weat 100, "
            "else 30; digits 30.",
        ),
    ] = None
    batch_size: Annotated[
        Count | None,
        option(_NETWORK, "Images a step, over all devices. Default: 128, digits 64."),
    ] = None
    learning_rate: Annotated[
        NotNegative | None,
        option(
            _NETWORK,
            "Highest learning rate. Default: the recipe's: rs_fgsm, fgsm, n_fgsm and "
            "aaer 0.2, grad_align 0.3, else 0.1; digits 0.05.",
        ),
    ] = None
    schedule: Annotated[
        Literal["cyclic", "piecewise", "one_cycle", "constant"] | None,
        option(
            _NETWORK,
            "Of the learning rate, step by step. Default: the recipe's: piecewise for pgd and "
            "trades, one_cycle for weat, else cyclic.",
        ),
    ] = None
    milestones: Annotated[
        tuple[float, ...] | None,
        Parameter(
            group=_NETWORK,
            help="Shares of the epochs after which a piecewise learning rate is divided by 10. "
            "Default: the recipe's: 0.5 0.75, for trades 0.75 0.9.",
            consume_multiple=True,
            negative="",
        ),
    ] = None
    momentum: Annotated[Share | None, option(_NETWORK, "Of SGD. Default: 0.9.")] = None
    weight_decay: Annotated[
        NotNegative | None,
        option(_NETWORK, "Coupled, as in PyTorch's SGD. Default: 5e-4, for trades 2e-4."),
    ] = None
    ema: Annotated[
        Share | None,
        option(
            _NETWORK,
            "Momentum of averaged weights, such as 0.999, which are then validated and saved. "
            "Default: 0: off.",
        ),
    ] = None
    swa_start: Annotated[
        Count | None,
        option(
            _NETWORK,
            "First epoch whose weights go into their mean (SWA), saved as swa.keras and measured "
            "beside best.keras. Default: none.",
        ),
    ] = None
    early_stopping: Annotated[
        Count | None,
        option(
            _NETWORK,
            "Stop after so many epochs without a new best validation robust accuracy. Default: "
            "never.",
        ),
    ] = None
    mixed_precision: Annotated[
        bool | None,
        flag(_NETWORK, "Compute in float16 with loss scaling. Default: no."),
    ] = None
    steps_per_execution: Annotated[
        Count | None,
        option(
            _NETWORK,
            "Steps between two looks at the loss and for signals; an epoch is filled up to a "
            "multiple of them. Default: 1.",
        ),
    ] = None

    validation_steps: Annotated[
        Count | None, option(_MEASURE, "PGD steps after each epoch. Default: 10.")
    ] = None
    evaluation_steps: Annotated[
        Count | None, option(_MEASURE, "PGD steps on the test set. Default: 20, digits 50.")
    ] = None
    evaluation_restarts: Annotated[
        Count | None, option(_MEASURE, "PGD restarts on the test set. Default: 1, digits 10.")
    ] = None

    energy_images: Annotated[
        Whole | None,
        option(
            _MEASURE,
            "Training and as many validation images whose energies are recorded after each epoch "
            "in energies.csv and energies/; 0: none. Default: what takes 3 % of the network "
            "passes of training, 16 to 512; where 16 take more, not after each epoch.",
        ),
    ] = None
    energy_every: Annotated[
        Whole | None,
        option(
            _MEASURE,
            "Record energies after so many steps, too. Default: 0: only after epochs.",
        ),
    ] = None
    overfitting_guard: Annotated[
        Literal["off", "warn", "stop", "roll-back"] | None,
        option(
            _MEASURE,
            "What to do at catastrophic overfitting, noticed within the epoch or at its end: warn, "
            "stop, or go back to the last robust weights. Warns of robust overfitting, too. "
            "Default: warn.",
        ),
    ] = None

    run_dir: Annotated[
        Path | None,
        option(
            _RUN,
            "Folder of the run; one that holds a run goes on where it stood. Default: "
            "runs/DATASET-ATTACK-TIME.",
        ),
    ] = None
    no_resume: Annotated[
        bool,
        flag(
            _RUN,
            "Set a run in --run-dir aside and start anew. Default: go on with it.",
        ),
    ] = False
    checkpoint_minutes: Annotated[
        NotNegative,
        option(
            _RUN, "Save within an epoch after so many minutes; 0: at its end only. Default: 10."
        ),
    ] = 10.0
    export_dir: Annotated[
        Path,
        option(_RUN, "Folder that gets NAME/VERSION. Default: saved_models."),
    ] = Path("saved_models")
    model_name: Annotated[
        FolderName | None, option(_RUN, "Name of the exported model. Default: DATASET-ATTACK.")
    ] = None
    no_export: Annotated[bool, flag(_RUN, "Write no SavedModel. Default: write one.")] = False
    debug: Annotated[
        bool,
        flag(
            _RUN,
            "Show TensorFlow's messages, and the traceback of an error. Default: no.",
        ),
    ] = False
