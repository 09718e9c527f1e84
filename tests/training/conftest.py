"""Shared by the tests of training: the digits of scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def digits():
    data = load_digits()
    return (data.images[..., None] / 16).astype(np.float32), data.target.astype(np.int32)
