"""Attacks by name: ``attacks.get("pgd", epsilon=8 / 255, steps=20)(model, x, y)``."""

from __future__ import annotations

from typing import Any

from der_tf.attacks.apgd import APGD, APGDDLR, APGDT
from der_tf.attacks.auto_attack import AutoAttack, AutoAttackResult
from der_tf.attacks.base import Attack
from der_tf.attacks.carlini_wagner import CW, CWLinf
from der_tf.attacks.checks import UnreliableAttackWarning
from der_tf.attacks.diff_pgd import DiffPGD
from der_tf.attacks.fab import FABT
from der_tf.attacks.gradient import FGSM, MIM, NFGSM, PGD, RSFGSM, TRADES
from der_tf.attacks.square import Square
from der_tf.configurable import accepted, create

__all__ = [
    "APGD",
    "APGDDLR",
    "APGDT",
    "CW",
    "FABT",
    "FGSM",
    "MIM",
    "NFGSM",
    "PGD",
    "RSFGSM",
    "TRADES",
    "Attack",
    "AutoAttack",
    "AutoAttackResult",
    "CWLinf",
    "DiffPGD",
    "Square",
    "UnreliableAttackWarning",
    "fields",
    "get",
    "names",
]

_ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "rs_fgsm": RSFGSM,
    "n_fgsm": NFGSM,
    "pgd": PGD,
    "mim": MIM,
    "trades": TRADES,
    "cw": CW,
    "cw_linf": CWLinf,
    "apgd_ce": APGD,
    "apgd_dlr": APGDDLR,
    "apgd_t": APGDT,
    "fab_t": FABT,
    "square": Square,
    "auto_attack": AutoAttack,
    "diff_pgd": DiffPGD,
}


def names() -> list[str]:
    """Names that :func:`get` knows."""
    return list(_ATTACKS)


def fields(name: str) -> list[str]:
    """Options that :func:`get` takes for this name.

    Raises:
        ValueError: for an unknown name.
    """
    return accepted("attack", _ATTACKS, name)


def get(name: str, **config: Any) -> Attack:
    """The attack of this name with this configuration.

    Raises:
        ValueError: for an unknown name or option, or a value out of its range.
    """
    return create("attack", _ATTACKS, name, config)
