"""Which attacks the suites hold, in which ball."""

import math

import pytest

from der_tf import attacks
from der_tf.evaluation import suites

COMMON = ("fgsm", "rs_fgsm", "pgd")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_suites_hold_what_the_field_asks_for(norm):
    margin = "cw_linf" if norm == "linf" else "pgd_margin"
    assert list(suites.get("quick", norm=norm)) == ["fgsm", "pgd"]
    standard = suites.get("standard", norm=norm)
    assert list(standard) == [*COMMON, margin, "auto_attack"]
    full = suites.get("full", norm=norm)
    assert list(full) == [*standard, "trades", "cw"]
    assert suites.get("quick")["pgd"].steps == 20
    assert (standard["pgd"].steps, standard["pgd"].restarts) == (50, 10)
    assert standard["pgd"].step_size is None  # epsilon / 4
    assert (standard[margin].loss, standard[margin].steps) == ("margin", 50)
    assert standard["auto_attack"].version == "standard"
    assert full["trades"].loss == "kl"


@pytest.mark.parametrize("name", suites.NAMES)
def test_every_attack_has_the_ball_of_the_suite_but_the_one_that_looks_further(name):
    for kind, attack in suites.get(name, epsilon=0.3, norm="l2", batch_size=7).items():
        assert attack.norm == "l2"
        assert attack.radius == (math.inf if kind == "cw" else 0.3)
        assert getattr(attack, "batch_size", 7) == 7


def test_diff_pgd_is_in_the_full_suite_when_there_is_a_denoiser():
    full = suites.get("full", epsilon=0.3, denoiser=lambda x, t: x)
    assert list(full)[-1] == "diff_pgd"
    assert full["diff_pgd"].epsilon == 0.3
    assert suites.notes("full", full, radius=0.3) == []
    (note,) = suites.notes("full", suites.get("full", epsilon=0.3), radius=0.3)
    assert "Diff-PGD was not run" in note
    assert suites.notes("standard", suites.get("standard", epsilon=0.3), radius=0.3) == []
    with pytest.raises(ValueError, match="belongs to the suite full; received one with quick"):
        suites.get("quick", denoiser=lambda x, t: x)


def test_an_attack_that_leaves_the_ball_is_noted():
    chosen = {name: attacks.get(name, epsilon=0.1) for name in ("pgd", "n_fgsm")}
    (note,) = suites.notes(None, chosen, radius=0.1)
    assert note.startswith("n_fgsm may end as far as 0.3 from the image")


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="a suite is one of quick, standard, full; received 'all'"):
        suites.get("all")
