"""The options of ``der-tf train`` that say what is minimised: outer loss and regularizers."""

# No annotations from __future__: cyclopts reads those of TrainOptions.__init__, these among them,
# in that module, where names of this one would not be known.
import dataclasses
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from der_tf.cli.console import Count, NotNegative, Share, flag, option

_LOSS = Group("Outer loss and regularizers", sort_key=3)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options by the names of :class:`~der_tf.training.recipes.Configuration`; None: not given."""

    objective: Annotated[
        str | None,
        option(_LOSS, "madry, trades, mart or weat. Default: the recipe's: madry, trades, weat."),
    ] = None
    beta: Annotated[
        NotNegative | None,
        option(_LOSS, "Weight of the divergence in trades, mart and weat. Default: 6, for mart 5."),
    ] = None
    label_smoothing: Annotated[
        Share | None, option(_LOSS, "Share of the uniform distribution in the target. Default: 0.")
    ] = None
    der_weight: Annotated[
        NotNegative | None,
        option(
            _LOSS,
            "Weight of the Delta Energy Regularizer; 0 turns it off. Default: 30 for rs_fgsm, "
            "n_fgsm and fgsm, 100 for rs_fgsm and fgsm on CIFAR from linf 12/255 on; 0 for "
            "multi-step attacks and beside GradAlign or AAER.",
        ),
    ] = None
    der_penalty: Annotated[
        Literal["squared", "absolute", "huber", "hinge", "squared_hinge", "squared_plus_hinge"]
        | None,
        option(
            _LOSS,
            "Penalty on a delta energy. Default: hinge for rs_fgsm, n_fgsm and fgsm, else squared.",
        ),
    ] = None
    der_reference: Annotated[
        Literal["natural", "start", "interior", "path"] | None,
        option(
            _LOSS,
            "Point that x* is compared with: x, the attack's start, one drawn between x and x* "
            "(interior), or between the start and x* (path). Default: start for rs_fgsm, n_fgsm "
            "and fgsm, else natural.",
        ),
    ] = None
    der_detached: Annotated[
        bool | None,
        flag(
            _LOSS,
            "Hold the reference's logits constant: no gradient through its pass. Default: no.",
        ),
    ] = None
    der_marginal: Annotated[
        NotNegative | None, option(_LOSS, "Weight of dE(x) within DER. Default: 0.")
    ] = None
    der_joint: Annotated[
        NotNegative | None, option(_LOSS, "Weight of dE(x, y) within DER. Default: 1.")
    ] = None
    der_warmup_epochs: Annotated[
        NotNegative | None,
        option(
            _LOSS,
            "Epochs over which the weight of DER rises from 0. Default: 0, where the default "
            "weight is 100 as many as see 40,000 images, at most half of all.",
        ),
    ] = None
    der_interval: Annotated[
        Count | None,
        option(
            _LOSS,
            "Take DER's gradient on one step in so many, with so many times the weight. "
            "Default: 1, on every step.",
        ),
    ] = None

    grad_align_weight: Annotated[
        NotNegative | None,
        option(
            _LOSS,
            "Weight of GradAlign; 0 turns it off. Default: 0, for the recipe grad_align its "
            "authors' for the radius: 0.2 at linf 8/255 on CIFAR, 2 from 16/255 on.",
        ),
    ] = None
    grad_align_full_gradient: Annotated[
        bool | None,
        flag(
            _LOSS,
            "Differentiate both input gradients of GradAlign, as in its equation. Default: no: "
            "the second alone, as in its authors' code.",
        ),
    ] = None
    aaer_weight: Annotated[
        NotNegative | None,
        option(
            _LOSS,
            "Weight of AAER, the penalty on abnormal examples; 0 turns it off. Default: 0, for the "
            "recipe aaer 1.",
        ),
    ] = None
    aaer_loss: Annotated[
        NotNegative | None,
        option(
            _LOSS,
            "Weight of the loss variation in AAER. Default: its authors' for attack and radius, at "
            "linf 8/255 n_fgsm 1.5, rs_fgsm 2.5; other attacks 4.",
        ),
    ] = None
    aaer_logits: Annotated[
        NotNegative | None,
        option(
            _LOSS,
            "Weight of the variation of the logits in AAER. Default: its authors' for attack and "
            "radius, at linf 8/255 n_fgsm 0.15, rs_fgsm 1.5; other attacks 1.5.",
        ),
    ] = None
    aaer_full_gradient: Annotated[
        bool | None,
        flag(
            _LOSS,
            "Gradients of AAER through both passes and the loss variation, as in its "
            "equation. Default: no: through the logits of x* alone, as in its authors' code.",
        ),
    ] = None
    aaer_warmup_epochs: Annotated[
        NotNegative | None,
        option(
            _LOSS,
            "Epochs over which the weight of AAER rises from 0, for long trainings. Default: 0.",
        ),
    ] = None
    awp_gamma: Annotated[
        NotNegative | None,
        option(
            _LOSS,
            "Relative size of adversarial weight perturbations (AWP), such as 0.005. Default: 0: "
            "off.",
        ),
    ] = None
    awp_warmup_epochs: Annotated[
        NotNegative | None, option(_LOSS, "Epochs before AWP begins. Default: 0.")
    ] = None
