"""The options of ``der-tf generate``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from der_tf.cli.console import Count, Debug, NotNegative, Share, Whole


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Which images, how their chains run and start, and what is written beside them."""

    classes: Annotated[
        str | None,
        Parameter(help="Names or numbers with commas between. Default: all classes."),
    ] = None
    num: Annotated[
        Count, Parameter(help="Images of each class. Default: 10.", show_default=False)
    ] = 10
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder that gets everything; what it already holds of the same command is kept. "
            "Default: RUN/samples, for a model runs/samples/NAME."
        ),
    ] = None
    steps: Annotated[
        Whole, Parameter(help="Most steps of a chain. Default: 50.", show_default=False)
    ] = 50
    step_size: Annotated[
        NotNegative, Parameter(help="Of the Langevin steps. Default: 0.5.", show_default=False)
    ] = 0.5
    momentum: Annotated[
        Share, Parameter(help="Of the steps, in [0, 1). Default: 0.5.", show_default=False)
    ] = 0.5
    noise: Annotated[
        NotNegative,
        Parameter(help="Standard deviation, in pixels. Default: 0.001.", show_default=False),
    ] = 0.001
    heun: Annotated[
        bool,
        Parameter(
            help="Two gradients a step (Heun's method). Default: no.",
            negative="",
            show_default=False,
        ),
    ] = False
    candidates: Annotated[
        Count,
        Parameter(
            help="Energy guidance: starts to choose each chain's from. Default: 8.",
            show_default=False,
        ),
    ] = 8
    fixed_steps: Annotated[
        bool,
        Parameter(
            help="Take all steps. Default: stop at the class's reference energy.",
            negative="",
            show_default=False,
        ),
    ] = False
    quantile: Annotated[
        NotNegative,
        Parameter(
            help="Of a class's energies on training images, which is its reference. Default: 0.1.",
            show_default=False,
        ),
    ] = 0.1
    mode: Annotated[
        Literal["local", "class", "gaussian", "noise"],
        Parameter(help="Of the starts. Default: local.", show_default=False),
    ] = "local"
    neighbors: Annotated[
        Count, Parameter(help="Of a local start. Default: 10.", show_default=False)
    ] = 10
    variance: Annotated[
        NotNegative,
        Parameter(help="Share that the starts' PCA keeps. Default: 0.95.", show_default=False),
    ] = 0.95
    sigma: Annotated[
        NotNegative, Parameter(help="Scale of the starts. Default: 1.25.", show_default=False)
    ] = 1.25
    dataset: Annotated[
        str | None, Parameter(help="Whose training images. Default: that of training.")
    ] = None
    data_dir: Annotated[
        Path | None, Parameter(help="Where it lies. Default: where it lay for training.")
    ] = None
    limit_train: Annotated[
        Count | None, Parameter(help="Use so many training images. Default: all.")
    ] = None
    batch_size: Annotated[
        Count, Parameter(help="Chains at a time. Default: 64.", show_default=False)
    ] = 64
    seed: Annotated[
        Whole,
        Parameter(
            help="Of each class's first image; then +1 each. Default: 0.", show_default=False
        ),
    ] = 0
    metrics: Annotated[
        bool,
        Parameter(
            help="Write IS, FID, KID, precision and recall against the test images of these "
            "classes; takes --extractor. Default: no.",
            negative="",
            show_default=False,
        ),
    ] = False
    extractor: Annotated[
        str | None,
        Parameter(
            help="Path or URL of the feature extractor: a SavedModel images -> features, logits, a "
            ".keras file, or Inception's frozen graph. Default: none."
        ),
    ] = None
    animate: Annotated[
        bool,
        Parameter(
            help="Write a GIF of the first chains. Default: no.", negative="", show_default=False
        ),
    ] = False
    debug: Debug = False

    def sampling(self) -> dict[str, Any]:
        """What decides on the images of a (class, seed), beside the model and the data set."""
        return {
            "steps": self.steps,
            "sampler": {
                "step_size": self.step_size,
                "momentum": self.momentum,
                "noise": self.noise,
                "heun": self.heun,
                "candidates": self.candidates,
                "adaptive": not self.fixed_steps,
            },
            "starts": {
                "neighbors": self.neighbors,
                "variance": self.variance,
                "sigma": self.sigma,
                "mode": self.mode,
            },
            "quantile": self.quantile,
            "limit_train": self.limit_train,
            "seed": self.seed,
        }

    @property
    def seeds(self) -> range:
        """Those of each class."""
        return range(self.seed, self.seed + self.num)
