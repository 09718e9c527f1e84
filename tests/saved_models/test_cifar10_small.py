"""The shipped CIFAR-10 classifiers reach what their cards say, on the test set of TFDS."""

import json
from pathlib import Path

import pytest

from der_tf import data
from der_tf.evaluation import evaluate
from der_tf.evaluation.loading import load_classifier

FOLDER = Path(__file__).parents[2] / "saved_models" / "cifar10_small"
IMAGES = 1024


@pytest.fixture(params=["1", "2"])
def folder(request):
    return FOLDER / request.param


@pytest.fixture
def card(folder):
    return json.loads((folder / "assets.extra" / "model_card.json").read_text())


def test_it_is_small_and_tells_how_it_was_trained(folder, card):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 12e6
    assert card["training"]["data_dir"] is None
    assert card["evaluation"]["images"] == 10_000
    assert {"predict", "predict_bytes", "energy", "defend", "sample"} <= card["signatures"].keys()


@pytest.mark.slow  # needs CIFAR-10 where TFDS keeps it (TFDS_DATA_DIR); downloads it otherwise
def test_it_reaches_what_its_card_says(folder, card):
    try:
        cifar10 = data.load("cifar10")
    except FileNotFoundError as missing:
        pytest.skip(f"re-measuring needs CIFAR-10, which no package ships: {missing}")
    classifier = load_classifier(folder)
    test = cifar10.test.unbatch().take(IMAGES).batch(128)
    measured = evaluate(classifier.model, test, attacks=("pgd",), epsilon=8 / 255)
    noted = card["evaluation"]
    for found, told in (
        (measured.natural.accuracy, noted["natural"]["accuracy"]),
        (measured.attacks["pgd"].accuracy, noted["attacks"]["pgd"]["accuracy"]),
    ):
        # Four standard deviations of a share of so many images; PGD takes 10 steps here, not 20.
        assert abs(found - told) < 4 * (0.25 / IMAGES) ** 0.5
