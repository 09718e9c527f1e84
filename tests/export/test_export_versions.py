"""A version appears whole or not at all, and an existing one stays as it is."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from der_tf.export import export


def numeric(base):
    """What TensorFlow Serving would load."""
    return sorted(int(entry) for entry in os.listdir(base) if entry.isdigit())


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_numbers(network, tmp_path):
    base = tmp_path / "not" / "yet" / "there"
    assert export(network, base) == base / "1"
    assert export(network, str(base), version=7) == base / "7"
    assert export(network, base) == base / "8"
    (base / "notes.txt").write_text("not a version")
    for ignored in ("latest", str(2**63)):
        (base / ignored).mkdir()
    assert export(network, base) == base / "9"
    assert export(network, base, version=np.int64(3)) == base / "3"
    assert numeric(base) == [1, 3, 7, 8, 9, 2**63]


def test_an_existing_version_is_refused_and_kept(exported, make_network):
    before = files(exported)
    sentence = "version 1 exists in .*: received version=1, accepted is any other than 1, or none"
    with pytest.raises(FileExistsError, match=sentence):
        export(make_network(seed=9), exported.parent, version=1)
    assert files(exported) == before
    assert os.listdir(exported.parent) == ["1"]


@pytest.mark.parametrize("version", [0, -1, 1.5, "2", True, 2**63])
def test_numbers_that_are_none(network, tmp_path, version):
    with pytest.raises(ValueError, match=f"version must be an integer from 1 .* {version!r}$"):
        export(network, tmp_path / "m", version=version)
    assert not (tmp_path / "m").exists()


def test_places_that_cannot_be_written(network, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(NotADirectoryError, match=f"path must be the .*, received the file {file}"):
        export(network, file)
    for base in (file / "model", "/proc/model"):
        with pytest.raises(OSError, match=f"a SavedModel cannot be written to {base}: "):
            export(network, base)
    assert file.read_text() == "kept"


@contextlib.contextmanager
def largest_file(size):
    """No file of this process can grow beyond ``size`` bytes, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [8, 2_000, 100_000])
def test_a_disk_that_fills_up(network, tmp_path, size):
    """At the labels, at the variables, and at the graph."""
    base = tmp_path / "m"
    with largest_file(size), pytest.raises(OSError, match=f"cannot be written to {base}: "):
        export(network, base)
    assert os.listdir(base) == []
    assert export(network, base) == base / "1"


def test_killed_while_writing(tmp_path, serve, network):
    """SIGKILL in the middle of an export: what a server would load is whole."""
    base = tmp_path / "m"
    script = textwrap.dedent("""
        import sys
        import keras
        from der_tf.export import export

        images = keras.Input((8, 6, 3))
        network = keras.Model(images, keras.layers.Dense(5)(keras.layers.Flatten()(images)))
        while True:
            export(network, sys.argv[1])
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(base)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline
            assert child.poll() is None
            if base.is_dir() and numeric(base) and len(os.listdir(base)) > len(numeric(base)):
                # Look again while it cannot move: it may have finished in between.
                child.send_signal(signal.SIGSTOP)
                if len(os.listdir(base)) > len(numeric(base)):
                    break
                child.send_signal(signal.SIGCONT)
    finally:
        child.kill()
        child.wait()
    versions = numeric(base)
    (half,) = set(os.listdir(base)) - set(map(str, versions))
    assert half.startswith(".")
    images = np.zeros((2, 8, 6, 3), np.float32)
    for version in versions:
        assert serve(base / str(version))("predict", images)["logits"].shape == (2, 5)
        assert (base / str(version) / "assets.extra" / "tf_serving_warmup_requests").is_file()
    # The next export removes the half-written one and takes the next number.
    assert export(network, base) == base / str(versions[-1] + 1)
    assert numeric(base) == [*versions, versions[-1] + 1]
    assert len(os.listdir(base)) == len(versions) + 1
