"""Draws have the mean and covariance of what they were fitted to, one row at a time."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from der_tf.generation import LocalClasswisePCA
from der_tf.generation.decomposition import neighborhoods
from tests.generation.conftest import GaussianEnergy, clusters

COUNT = 2000


def draws(starts, label=1, count=COUNT):
    images = starts.sample(np.full(count, label), np.arange(count)).numpy()
    return images.reshape(count, -1).astype(np.float64)


def spectrum(rows):
    return np.linalg.eigvalsh(np.cov(rows.T))[::-1]


@pytest.mark.parametrize("mode", ["class", "gaussian"])
def test_a_class_is_drawn_with_its_mean_and_covariance(data, mode):
    images, labels = data
    rows = images[labels == 1].reshape(-1, 16).astype(np.float64)
    drawn = draws(LocalClasswisePCA(variance=1.0, sigma=1.0, mode=mode).fit(images, labels))
    spread = np.sqrt(spectrum(rows)[0])
    np.testing.assert_allclose(drawn.mean(0), rows.mean(0), atol=4 * spread / np.sqrt(COUNT))
    np.testing.assert_allclose(spectrum(drawn)[:4], spectrum(rows)[:4], rtol=0.1)
    halved = draws(LocalClasswisePCA(sigma=0.5, mode=mode).fit(images, labels))
    np.testing.assert_allclose(spectrum(halved)[0], spectrum(rows)[0] / 4, rtol=0.1)


def test_variance_keeps_the_share_of_components_that_scikit_learn_keeps(data):
    images, labels = data
    starts = LocalClasswisePCA(variance=0.9, mode="class").fit(images, labels)
    kept = [PCA(0.9).fit(images[labels == y].reshape(-1, 16)).n_components_ for y in range(3)]
    assert starts.num_components == max(kept)
    drawn = draws(starts, count=100)
    assert np.linalg.matrix_rank(drawn - drawn.mean(0), tol=1e-3) == kept[1]


@pytest.mark.parametrize("levels", [False, True])
def test_local_draws_have_the_law_of_a_mixture_over_anchors(data, levels):
    """Its mean and covariance, computed from plain distances and covariances."""
    images, labels = data
    if levels:
        images = np.rint(images * 255).astype(np.float32) / np.float32(255)
    rows = images[labels == 2].reshape(-1, 16).astype(np.float64)
    distances = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    near = rows[np.argsort(distances, axis=1)[:, :6]]
    means = near.mean(axis=1)
    within = np.mean([np.cov(part.T) for part in near], axis=0)
    between = np.cov(means.T, bias=True)
    starts = LocalClasswisePCA(neighbors=5, variance=1.0, sigma=1.0).fit(images, labels)
    drawn = draws(starts, label=2)
    np.testing.assert_allclose(
        drawn.mean(0), means.mean(0), atol=4 * np.sqrt(spectrum(drawn)[0] / COUNT)
    )
    expected = np.linalg.eigvalsh(within + between)[::-1]
    np.testing.assert_allclose(spectrum(drawn)[:4], expected[:4], rtol=0.12)


@pytest.mark.parametrize("share", [0.6, 0.95, 1.0])
def test_a_neighbourhood_is_decomposed_as_scikit_learn_does(data, share):
    rows = data[0].reshape(len(data[0]), -1)
    fitted = neighborhoods(rows, [rows], 7, share)
    ranks = set()
    for near, mixture in zip(fitted["neighbors"], fitted["mixtures"], strict=True):
        images = rows[near].astype(np.float64)
        pca = PCA(None if share == 1 else share, svd_solver="full").fit(images)
        kept = min(pca.n_components_, 7)  # the eighth is rounding error
        ranks.add(kept)
        expected = np.sqrt(pca.explained_variance_[:kept, None]) * pca.components_[:kept]
        components = mixture.T.astype(np.float64) @ (images - images.mean(axis=0))
        assert not components[kept:].any()
        # Signs are free.
        np.testing.assert_allclose(
            components[:kept].T @ components[:kept], expected.T @ expected, atol=1e-6
        )
        lengths = np.linalg.norm(components[:kept], axis=1)
        np.testing.assert_allclose(lengths**2, pca.explained_variance_[:kept], atol=1e-6)
    assert len(ranks) > 1 or share == 1


def test_without_spread_a_draw_is_the_mean_of_a_neighbourhood(data):
    images, labels = data
    starts = LocalClasswisePCA(neighbors=1, sigma=0.0).fit(images, labels)
    rows = images[labels == 0].reshape(-1, 16)
    pairs = (rows[:, None] + rows[None]) / 2
    pairs = pairs[~np.eye(len(rows), dtype=bool)]
    for drawn in draws(starts, label=0, count=20):
        assert np.abs(pairs - drawn).max(axis=1).min() < 1e-3


@pytest.mark.parametrize("mode", ["local", "class", "gaussian", "noise"])
def test_a_draw_does_not_depend_on_its_company(data, mode):
    starts = LocalClasswisePCA(neighbors=5, mode=mode).fit(*data)
    labels, seeds = np.array([2, 0, 1, 1, 2]), np.array([7, -1, 2**40, 3, 3])
    together = starts.sample(labels, seeds).numpy()
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(5):
        alone = starts.sample(labels[i : i + 1], seeds[i : i + 1]).numpy()[0]
        np.testing.assert_allclose(alone, together[i], atol=1e-6)
    assert len(np.unique(together.reshape(5, -1), axis=0)) == 5
    assert starts.sample([], []).shape == (0, 4, 4, 1)


@pytest.mark.parametrize("mode", ["local", "class", "gaussian", "noise"])
def test_saved_and_loaded_it_draws_the_same(data, mode, tmp_path):
    starts = LocalClasswisePCA(neighbors=4, variance=0.8, sigma=0.7, mode=mode).fit(*data)
    means = np.stack([data[0][data[1] == y].mean(0).ravel() for y in range(3)])
    starts.set_reference_energies(GaussianEnergy(means, 5.0), *data, quantile=0.25)
    for name, original in (("full", starts), ("bank", starts.bank())):
        original.save(tmp_path / name)
        loaded = LocalClasswisePCA.load(tmp_path / name)
        assert (loaded.mode, loaded.neighbors, loaded.sigma) == (mode, 4, 0.7)
        np.testing.assert_array_equal(loaded.reference_energies, starts.reference_energies)
        np.testing.assert_array_equal(draws(loaded, count=50), draws(original, count=50))
    # A bank can be made of what was loaded, and of a bank.
    np.testing.assert_array_equal(draws(loaded.bank(), count=20), draws(starts.bank(), count=20))


@pytest.mark.parametrize("mode", ["local", "class", "gaussian"])
def test_the_bank_has_the_law_of_the_full_version(mode):
    images, labels = clusters(per_class=400)
    full = LocalClasswisePCA(neighbors=6, variance=1.0, mode=mode).fit(images, labels)
    bank = full.bank(megabytes=0.06)
    assert bank.megabytes <= 0.06
    assert len(bank._arrays["means"]) == (3 * 89 if mode == "local" else 3)
    assert bank._arrays["components"].dtype == np.float16
    one, other = draws(full), draws(bank)
    spread = np.sqrt(spectrum(one)[0])
    # The anchors kept are themselves draws from all of them.
    anchors = len(bank._arrays["means"]) / 3 if mode == "local" else COUNT
    np.testing.assert_allclose(one.mean(0), other.mean(0), atol=4 * spread / np.sqrt(anchors))
    np.testing.assert_allclose(
        spectrum(other)[:4], spectrum(one)[:4], rtol=0.4 if mode == "local" else 0.1
    )


def test_a_bank_of_everything_draws_what_the_full_version_draws(data):
    full = LocalClasswisePCA(neighbors=6).fit(*data)
    np.testing.assert_allclose(
        draws(full.bank(megabytes=1), count=100), draws(full, count=100), atol=2e-3
    )


def test_reference_energies_are_quantiles_of_each_class(data):
    images, labels = data
    means = np.stack([images[labels == y].mean(0).ravel() for y in range(3)])
    starts = LocalClasswisePCA().fit(images, labels)
    starts.set_reference_energies(GaussianEnergy(means, 2.0), images, labels, quantile=0.9)
    for y in range(3):
        energies = ((images[labels == y].reshape(-1, 16) - means[y]) ** 2).sum(-1)
        np.testing.assert_allclose(
            starts.reference_energies[y], np.quantile(energies, 0.9), rtol=1e-4
        )


def test_copies_of_one_image_are_drawn_as_they_are():
    images = np.full((12, 4, 4, 1), 0.25, np.float32)
    labels = np.repeat([0, 1], 6)
    for mode in ("local", "class", "gaussian"):
        starts = LocalClasswisePCA(neighbors=3, mode=mode).fit(images, labels)
        np.testing.assert_allclose(draws(starts, count=5), 0.25, atol=1e-6)


def test_bad_input_is_one_sentence(data, tmp_path):
    images, labels = data
    with pytest.raises(ValueError, match=r"mode is one of local, class.*received 'knn'"):
        LocalClasswisePCA(mode="knn")
    for options in ({"neighbors": 0}, {"variance": 0}, {"variance": 1.5}, {"sigma": float("nan")}):
        with pytest.raises(ValueError, match="received"):
            LocalClasswisePCA(**options)
    with pytest.raises(ValueError, match=r"neighbors=30 and 30 images of class 0"):
        LocalClasswisePCA(neighbors=30).fit(images, labels)
    with pytest.raises(ValueError, match=r"at least 2 images; received 1 of class 3"):
        LocalClasswisePCA(neighbors=5).fit(images, np.where(np.arange(90) == 89, 3, labels))
    with pytest.raises(ValueError, match=r"at least 2 images; received 0 of class 1"):
        LocalClasswisePCA(mode="class").fit(images[labels != 1], labels[labels != 1])
    with pytest.raises(ValueError, match=r"in \[0, 1\]; received values from"):
        LocalClasswisePCA().fit(images * 255, labels)
    with pytest.raises(ValueError, match="not fitted"):
        LocalClasswisePCA().sample([0], [0])
    fitted = LocalClasswisePCA().fit(images, labels)
    with pytest.raises(ValueError, match=r"classes in 0\.\.2; received 3"):
        fitted.sample([0, 3], [0, 0])
    with pytest.raises(ValueError, match="a seed a label"):
        fitted.sample([0, 1], [0])
    with pytest.raises(ValueError, match="received megabytes=1e-05"):
        fitted.bank(megabytes=1e-5)
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="holds no fitted LocalClasswisePCA"):
        LocalClasswisePCA.load(tmp_path / "x.npz")
