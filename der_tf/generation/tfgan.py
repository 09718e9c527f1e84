"""TF-GAN's ``classifier_metrics``, imported alone.

TF-GAN 2.1.0 cannot be imported as a whole: its training code needs ``tf.estimator``, which
TensorFlow no longer has. Its metrics need none of that, only their packages' ``__init__`` do, so
these are stood in for while the module is imported, and taken away again.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

_PACKAGES = ("tensorflow_gan", "tensorflow_gan.python", "tensorflow_gan.python.eval")


@functools.cache
def classifier_metrics() -> Any:
    """The module ``tensorflow_gan.python.eval.classifier_metrics``.

    Raises:
        ImportError: when TF-GAN is not installed; the message says how to install it.
    """
    missing = "scores need TF-GAN, which is not installed: pip install 'der-tf[generation]'"
    spec = importlib.util.find_spec("tensorflow_gan")
    if spec is None or spec.origin is None:
        raise ImportError(missing)
    root = Path(spec.origin).parent
    stubs = {}
    for name in _PACKAGES:
        stubs[name] = types.ModuleType(name)
        stubs[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    before = {name: module for name, module in sys.modules.items() if _is_tfgan(name)}
    sys.modules.update(stubs)
    try:
        return importlib.import_module("tensorflow_gan.python.eval.classifier_metrics")
    except ImportError as error:
        raise ImportError(f"{missing} ({error})") from error
    finally:
        for name in [name for name in sys.modules if _is_tfgan(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_tfgan(name: str) -> bool:
    return name.split(".")[0] == "tensorflow_gan"
