"""Suites of attacks by name, each a superset of the one before but for ``quick``'s PGD-20.

==========  =======================================================================================
suite       attacks
==========  =======================================================================================
quick       FGSM, PGD-20
standard    FGSM, RS-FGSM, PGD-50-10, Carlini & Wagner's margin by PGD-50, AutoAttack (standard)
full        standard's, KL-PGD-20 of TRADES, Carlini & Wagner's l2 attack, and with a denoiser
            Diff-PGD-10
==========  =======================================================================================

PGD takes steps of epsilon / 4 from a uniform start. Carlini & Wagner's l2 attack looks for the
smallest perturbation in l2, however large; in a suite it counts as a success only where its result
lies in the suite's ball, also in an l-inf one, of which its l2 distances are a second reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from der_tf import attacks
from der_tf.attacks import Attack

NAMES = ("quick", "standard", "full")


def get(
    name: str,
    *,
    epsilon: float = 8 / 255,
    norm: str = "linf",
    batch_size: int = 128,
    denoiser: Any = None,
) -> dict[str, Attack]:
    """The attacks of a suite by name, in the order in which they are reported.

    Args:
        name: ``"quick"``, ``"standard"`` or ``"full"``.
        epsilon: radius of the ball, in pixels of [0, 1]. Default 8/255.
        norm: ``"linf"`` (default) or ``"l2"``.
        batch_size: images that AutoAttack has under way at a time. Default 128.
        denoiser: for Diff-PGD in ``"full"``. Default None: without Diff-PGD.

    Raises:
        ValueError: for another name, an epsilon or norm that attacks refuse, or a denoiser for
            a suite that does not run Diff-PGD.
    """
    if name not in NAMES:
        raise ValueError(f"a suite is one of {', '.join(NAMES)}; received {name!r}")
    if denoiser is not None and name != "full":
        raise ValueError(f"a denoiser belongs to the suite full; received one with {name}")

    def attack(kind: str, **options: object) -> Attack:
        return attacks.get(kind, epsilon=epsilon, norm=norm, **options)

    if name == "quick":
        return {"fgsm": attack("fgsm"), "pgd": attack("pgd", steps=20)}
    margin = (
        {"cw_linf": attack("cw_linf", steps=50)}
        if norm == "linf"
        else {"pgd_margin": attack("pgd", loss="margin", steps=50)}
    )
    standard = {
        "fgsm": attack("fgsm"),
        "rs_fgsm": attack("rs_fgsm"),
        "pgd": attack("pgd", steps=50, restarts=10),
        **margin,
        "auto_attack": attack("auto_attack", batch_size=batch_size),
    }
    if name == "standard":
        return standard
    full = {
        **standard,
        "trades": attack("trades", steps=20),
        "cw": attacks.get("cw", epsilon=math.inf),
    }
    if denoiser is None:
        return full
    return {**full, "diff_pgd": attack("diff_pgd", denoiser=denoiser)}


def notes(name: str | None, chosen: Mapping[str, Attack], radius: float) -> list[str]:
    """What a suite has left out and which attacks may leave the ball, for a report."""
    found = [
        f"{key} may end as far as {attack.radius:.4g} from the image; outside of the ball of "
        f"radius {radius:.4g} the image counts as it is."
        for key, attack in chosen.items()
        if radius < attack.radius < math.inf
    ]
    if name == "full" and "diff_pgd" not in chosen:
        found.append("Diff-PGD was not run: it takes a denoiser of such images (--denoiser).")
    return found
