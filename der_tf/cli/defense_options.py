"""The options of the commands that defend: ``der-tf evaluate --defend`` and ``der-tf export``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from der_tf.cli.console import Count, NotNegative

if TYPE_CHECKING:
    from der_tf.defenses import EnergyDescent

_GROUP = Group("Defence (steps down the energy before images are classified)", sort_key=1)


@Parameter(name="*", group=_GROUP)
@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseOptions:
    """Options by the names of :class:`~der_tf.defenses.EnergyDescent`; None: not given."""

    defense_step_size: Annotated[
        NotNegative | None,
        Parameter(help="Length of a step in l2, in pixels of [0, 1]. Default: 0.125."),
    ] = None
    defense_radius: Annotated[
        NotNegative | None,
        Parameter(help="Radius of the l2 ball around the image, in pixels. Default: 0.25."),
    ] = None
    defense_steps: Annotated[Count | None, Parameter(help="Steps. Default: 1.")] = None

    def build(self) -> EnergyDescent:
        """The defence with what was given; imports TensorFlow."""
        from der_tf.defenses import EnergyDescent

        given = {
            name.removeprefix("defense_"): value
            for name, value in dataclasses.asdict(self).items()
            if value is not None
        }
        return EnergyDescent(**given)
