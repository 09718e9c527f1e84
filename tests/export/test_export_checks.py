"""Requests that do not fit are refused in one sentence; files are read as other readers do."""

import io
import re
import struct
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from der_tf.export import export

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)


def filled(shape, value=0.5):
    return np.full(shape, value, np.float32)


def with_value(value):
    images = filled((2, 8, 6, 3))
    images[1, 3, 2, 0] = value
    return images


ACCEPTED = r"images must be float32 \[B, 8, 6, 3\] with values in \[0, 1\]; received "
BAD_IMAGES = {
    "a single image without batch": (filled((8, 6, 3)), r"shape \[8, 6, 3\]"),
    "a number": (filled(()), r"shape \[\]"),
    "five dimensions": (filled((1, 2, 8, 6, 3)), r"shape \[1, 2, 8, 6, 3\]"),
    "sides swapped": (filled((2, 6, 8, 3)), r"shape \[2, 6, 8, 3\]"),
    "greyscale": (filled((2, 8, 6, 1)), r"shape \[2, 8, 6, 1\]"),
    "channels first": (filled((2, 3, 8, 6)), r"shape \[2, 3, 8, 6\]"),
    "empty images": (filled((2, 0, 6, 3)), r"shape \[2, 0, 6, 3\]"),
    "no rows of a wrong size": (filled((0, 9, 6, 3)), r"shape \[0, 9, 6, 3\]"),
    "NaN": (with_value(np.nan), "1 values that are NaN or infinite"),
    "infinity": (with_value(np.inf), "1 values that are NaN or infinite"),
    "minus infinity": (with_value(-np.inf), "1 values that are NaN or infinite"),
    "all NaN": (filled((1, 8, 6, 3), np.nan), "144 values that are NaN or infinite"),
    "0 to 255": (with_value(255), r"values from 0\.5 to 255"),
    "just below 0": (with_value(-1e-6), r"values from -1e-06 to 0\.5"),
    "just above 1": (with_value(np.nextafter(np.float32(1), np.float32(2))), "values from 0.5 to"),
}


@pytest.mark.parametrize("signature", ["serving_default", "predict", "energy"])
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images(served, signature, case):
    images, received = BAD_IMAGES[case]
    with pytest.raises(tf.errors.InvalidArgumentError, match=ACCEPTED + received):
        served(signature, images)


def test_the_python_loader_gives_the_same_sentence(exported):
    predict = tf.saved_model.load(str(exported)).signatures["predict"]
    for images, received in BAD_IMAGES.values():
        with pytest.raises(tf.errors.InvalidArgumentError, match=ACCEPTED + received):
            predict(images=tf.constant(images))


def test_the_ends_of_the_range_are_accepted(served):
    images = np.concatenate([filled((1, 8, 6, 3), 0), filled((1, 8, 6, 3), 1)])
    assert np.isfinite(served("predict", images)["logits"]).all()


def test_too_many_rows(make_network, serve, tmp_path):
    network = make_network()
    served = serve(export(network, tmp_path / "m", max_batch_size=2, max_enqueued_batches=3))
    assert served("predict", filled((6, 8, 6, 3)))["classes"].shape == (6,)
    sentence = "may hold at most 6 rows a request; received 7"
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"images {sentence}"):
        served("predict", filled((7, 8, 6, 3)))
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"image_bytes {sentence}"):
        served("predict_bytes", np.array([b""] * 7, object))


def check_bytes(served, network, files, pixels):
    """The files are answered as these pixels, 0..255, are by the network."""
    answer = served("predict_bytes", np.array(files, object))
    logits = keras.ops.convert_to_numpy(network(np.float32(pixels) / 255, training=False))
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5, atol=1e-5)


def test_png_of_the_models_size_is_its_pixels(served, network, encode, images):
    pixels = (images * 255).round().astype(np.uint8)
    check_bytes(served, network, [encode(p) for p in pixels], pixels)
    answer = served("predict", np.float32(pixels) / 255)
    from_bytes = served("predict_bytes", np.array([encode(p) for p in pixels], object))
    assert from_bytes["classes"].tolist() == answer["classes"].tolist()


def test_every_kind_of_png_and_jpeg(served, network, encode):
    """Against Pillow, whose PNG and JPEG readers are those of the reference libraries."""
    grey = PIXELS[..., 0]
    alpha = np.dstack([PIXELS, RNG.integers(0, 256, (8, 6), dtype=np.uint8)])
    palette = Image.fromarray(PIXELS).quantize(16)
    files = {
        "grey": encode(grey),
        "alpha": encode(alpha),
        "grey and alpha": encode(Image.fromarray(alpha).convert("LA")),
        "palette": encode(palette),
        "16 bit": encode(grey.astype(np.uint16) * 257),
        "jpeg": encode(PIXELS, "JPEG", quality=95),
        "progressive": encode(PIXELS, "JPEG", progressive=True),
        "subsampled": encode(PIXELS, "JPEG", subsampling="4:2:0"),
        "grey jpeg": encode(grey, "JPEG"),
        "trailing bytes": encode(PIXELS, "JPEG") + b"\0" * 100,
        "trailing bytes after png": encode(PIXELS) + b"\0" * 100,
    }
    expected = {
        name: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        for name, data in files.items()
        if name != "16 bit"
    }
    expected["alpha"] = PIXELS
    expected["16 bit"] = np.repeat(grey[..., None], 3, axis=-1)
    for name, data in files.items():
        check_bytes(served, network, [data], expected[name][None])


def test_colour_for_a_greyscale_model(make_network, serve, encode, tmp_path):
    network = make_network(channels=1)
    served = serve(export(network, tmp_path / "grey"))
    grey = PIXELS[..., :1]
    check_bytes(served, network, [encode(grey[..., 0])], grey[None])
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])
    answer = served("predict_bytes", np.array([encode(PIXELS)], object))["logits"]
    low, high = (
        keras.ops.convert_to_numpy(network(np.float32(luma[None, ..., None] + d) / 255))
        for d in (-1.5, 1.5)
    )
    # The network is increasing in its input (positive weights, ReLU): one level either way.
    assert (low <= answer).all()
    assert (answer <= high).all()


def test_other_sizes_are_resized(served, network, encode):
    large = np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))
    resized = tf.image.resize(large, [8, 6], "bilinear", antialias=True).numpy()
    check_bytes(served, network, [encode(large), encode(PIXELS)], [resized, PIXELS])
    # Of a constant image every filter makes the same constant, upwards too.
    flat = np.full((3, 17, 3), 77, np.uint8)
    check_bytes(served, network, [encode(flat)], np.full((1, 8, 6, 3), 77))


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"


END = b"\0\0\0\0IEND\xaeB`\x82"
NAMED = "image_bytes"
ITEM = r"image_bytes\[0\] must be a complete PNG or JPEG; received "
SIZE = r"image_bytes\[0\] must hold 1 to 33554432 pixels; received sides of "


def bad_files(encode):
    png, jpeg = encode(PIXELS), encode(PIXELS, "JPEG")
    return {
        "nothing": (b"", ITEM + "0 bytes that start as neither"),
        "text": (b"no image", ITEM + "8 bytes that start as neither"),
        "gif": (encode(PIXELS, "GIF"), ITEM + ".* start as neither"),
        "bmp": (encode(PIXELS, "BMP"), ITEM + ".* start as neither"),
        "a signature only": (png[:8], ITEM + "8 bytes without the end mark of a PNG"),
        "half a png": (png[: len(png) // 2], ITEM + ".* without the end mark of a PNG"),
        "half a jpeg": (jpeg[: len(jpeg) // 2], ITEM + ".* without the end mark of a JPEG"),
        "a png without its middle": (png[:60] + END, NAMED),
        "a jpeg without its middle": (jpeg[:200] + jpeg[-2:], NAMED),
        "a flipped bit": (png[:50] + bytes([png[50] ^ 1]) + png[51:], NAMED),
        "no header": (png[:8] + END, NAMED),
        "no pixels": (png_header(0, 0) + END, SIZE + r"\[0, 0\]"),
        "negative sides": (png_header(2**32 - 1, 2**32 - 1) + END, SIZE + r"\[-1, -1\]"),
        "a bomb's header": (png_header(2**31 - 1, 2**31 - 1) + END, SIZE),
        "a bomb": (encode(np.zeros((8000, 8000), np.uint8)), SIZE + r"\[8000, 8000\]"),
        "a jpeg bomb": (encode(np.zeros((6000, 6000), np.uint8), "JPEG"), SIZE),
    }


def test_bad_files(served, network, encode):
    good = encode(PIXELS)
    for case, (data, sentence) in bad_files(encode).items():
        start = time.monotonic()
        with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
            served("predict_bytes", np.array([data], object))
        assert time.monotonic() - start < 1, case  # refused unopened
        # One bad file refuses the whole request, and says which it is.
        with pytest.raises(tf.errors.InvalidArgumentError) as refused:
            served("predict_bytes", np.array([good, data, good], object))
        if sentence != NAMED:
            assert re.search(sentence.replace(r"\[0\] must", r"\[1\] must"), str(refused.value))
        check_bytes(served, network, [good], PIXELS[None])


def test_many_large_files_in_one_request(served, encode):
    """Each is accepted alone; together they would be minutes of decoding."""
    large = encode(np.zeros((5000, 5000), np.uint8))
    start = time.monotonic()
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match="image_bytes may hold at most 268435456 pixels a request; received 275000000",
    ):
        served("predict_bytes", np.array([large] * 11, object))
    assert time.monotonic() - start < 1


def test_files_in_a_wrong_rank(served, encode):
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"image_bytes must be string \[B\], a PNG or JPEG file each; received shape \[1, 1\]",
    ):
        served("predict_bytes", np.array([[encode(PIXELS)]], object))
