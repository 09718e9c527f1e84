"""What each signature asserts about its own request before any other request is involved.

The checks are TensorFlow operations inside the exported graph, because TensorFlow Serving does
not compare shapes with the signature. A failed one is INVALID_ARGUMENT with one sentence: the
name of the input, what is accepted, what was received.
"""

from __future__ import annotations

import tensorflow as tf

# A 33-megapixel photograph decodes to 100 MB. The second bound is for all images of a request.
MAX_IMAGE_PIXELS = 2**25
MAX_REQUEST_PIXELS = 2**28

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"


def received(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor as the client sent it: the static shape of its signature is forgotten.

    With the static shape, rank and shape comparisons would be settled while tracing, although
    TensorFlow Serving lets any shape through to the graph.
    """
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None))


def require(condition: tf.Tensor, *sentence) -> tf.Operation:
    """Asserts a scalar condition; the sentence (strings and tensors) is built only when it fails.

    A callable in the sentence is called for its tensor, so that it costs good requests nothing.
    """

    def build():
        parts = [part() if callable(part) else part for part in sentence]
        return tf.strings.join([p if isinstance(p, str) else _text(p) for p in parts])

    message = tf.cond(condition, lambda: tf.constant(""), build)
    return tf.debugging.Assert(condition, [message])


def _text(tensor: tf.Tensor) -> tf.Tensor:
    """A number as it is, a vector as ``[a, b, c]``, text unchanged."""
    text = tensor
    if tensor.dtype != tf.string:
        text = tf.strings.as_string(tensor, shortest=tensor.dtype.is_floating)
    if text.shape.rank == 0:
        return text
    return tf.strings.join(["[", tf.strings.reduce_join(text, separator=", "), "]"])


def check_batch(tensor: tf.Tensor, name: str, accepted: str, row_shape, max_rows: int | None):
    """Asserts the shape ``[B, *row_shape]`` with B at most max_rows (None: any B).

    Returns:
        The tensor, with its static shape, behind the checks.
    """
    tensor = received(tensor)
    shape = tf.shape(tensor)
    right_rank = tf.equal(tf.size(shape), 1 + len(row_shape))
    fits = tf.cond(
        right_rank,
        lambda: tf.reduce_all(tf.equal(shape[1:], list(row_shape))) if row_shape else True,
        lambda: False,
    )
    check = require(fits, f"{name} must be {accepted}; received shape ", lambda: shape)
    with tf.control_dependencies([check]):
        tensor = tf.ensure_shape(tensor, [None, *row_shape])
    if max_rows is None:
        return tensor
    rows = tf.shape(tensor)[0]
    accepted = f"{name} may hold at most {max_rows} rows a request; received "
    check = require(rows <= max_rows, accepted, lambda: rows)
    with tf.control_dependencies([check]):
        return tf.identity(tensor)


def check_integers(
    values: tf.Tensor, name: str, lowest: int, highest: int, max_rows: int | None
) -> tf.Tensor:
    """Asserts int32 ``[B]`` in lowest..highest; B may be 0."""
    accepted = f"{values.dtype.name} [B] in {lowest}..{highest}"
    values = check_batch(values, name, accepted, (), max_rows)
    inside = (values >= lowest) & (values <= highest)
    check = require(
        tf.reduce_all(inside),
        f"{name} must be {accepted}; received ",
        lambda: tf.boolean_mask(values, ~inside)[0],
    )
    with tf.control_dependencies([check]):
        return tf.identity(values)


def check_images(images: tf.Tensor, image_shape, max_rows: int | None) -> tf.Tensor:
    """Asserts float32 ``[B, H, W, C]`` with finite values in [0, 1]; B may be 0."""
    accepted = f"float32 [B, {', '.join(map(str, image_shape))}] with values in [0, 1]"
    images = check_batch(images, "images", accepted, image_shape, max_rows)

    def describe():
        finite = tf.math.is_finite(images)
        values = tf.boolean_mask(images, finite)
        return tf.cond(
            tf.reduce_all(finite),
            lambda: tf.strings.join(
                ["values from ", _text(tf.reduce_min(values)), " to ", _text(tf.reduce_max(values))]
            ),
            lambda: tf.strings.join(
                [_text(tf.size(images) - tf.size(values)), " values that are NaN or infinite"]
            ),
        )

    # NaN fails both comparisons.
    inside = tf.reduce_all((images >= 0.0) & (images <= 1.0))
    check = require(inside, f"images must be {accepted}; received ", describe)
    with tf.control_dependencies([check]):
        return tf.identity(images)


def decode_images(image_bytes: tf.Tensor, image_shape, max_rows: int | None) -> tf.Tensor:
    """PNG or JPEG bytes ``[B]`` to checked float32 images ``[B, H, W, C]`` in [0, 1].

    Colour is brought to the model's channels (C = 1 or 3): greyscale is repeated, colour becomes
    luma, palettes are expanded, alpha is dropped, 16-bit samples lose their low byte. Another
    size is resized to H x W without keeping the aspect ratio: bilinear, with an antialiasing
    filter when shrinking (``tf.image.resize(..., "bilinear", antialias=True)``). An image of the
    model's size is its pixels / 255. EXIF orientation is not applied.

    The dimensions are read from the headers before anything is decoded, so that a small file
    that would unpack into gigabytes is refused unopened.
    """
    height, width, channels = image_shape
    image_bytes = check_batch(
        image_bytes, "image_bytes", "string [B], a PNG or JPEG file each", (), max_rows
    )
    index = tf.range(tf.size(image_bytes))
    # Damage that only the decoders notice is reported by them, with the name of their scope.
    with tf.name_scope("image_bytes_must_be_complete_PNG_or_JPEG"):
        pixels = tf.map_fn(
            lambda item: _count_pixels(*item),
            (index, image_bytes),
            fn_output_signature=tf.TensorSpec([], tf.int64),
        )
        total = tf.reduce_sum(pixels)
        check = require(
            total <= MAX_REQUEST_PIXELS,
            f"image_bytes may hold at most {MAX_REQUEST_PIXELS} pixels a request; received ",
            lambda: total,
        )
        with tf.control_dependencies([check]):
            image_bytes = tf.identity(image_bytes)

        def decode(contents):
            # This op reads PNG as well; the accurate transform is the one other readers use.
            image = tf.io.decode_jpeg(contents, channels=channels, dct_method="INTEGER_ACCURATE")
            image = tf.cond(
                tf.reduce_all(tf.equal(tf.shape(image)[:2], [height, width])),
                lambda: tf.cast(image, tf.float32),
                lambda: tf.image.resize(image, [height, width], "bilinear", antialias=True),
            )
            return tf.ensure_shape(tf.clip_by_value(image / 255.0, 0.0, 1.0), image_shape)

        return tf.map_fn(
            decode,
            image_bytes,
            fn_output_signature=tf.TensorSpec(image_shape, tf.float32),
            parallel_iterations=4,  # bounds the decoded pixels held at a time
        )


def _count_pixels(index: tf.Tensor, contents: tf.Tensor) -> tf.Tensor:
    """Pixels that one file says it holds, int64; asserts that it is PNG or JPEG and not too big."""
    subject = ["image_bytes[", index, "] must be a complete PNG or JPEG; received "]
    size = tf.strings.length(contents)
    png = _starts_with(contents, _PNG)
    known = png | _starts_with(contents, _JPEG)
    check = require(known, *subject, size, " bytes that start as neither")
    with tf.control_dependencies([check]):
        contents = tf.identity(contents)
    whole = tf.size(tf.strings.split(contents, tf.where(png, _PNG_END, _JPEG_END))) > 1
    check = require(
        whole,
        *subject,
        size,
        " bytes without the end mark of a ",
        lambda: tf.where(png, "PNG", "JPEG"),
    )
    with tf.control_dependencies([check]):
        contents = tf.identity(contents)
    sides = tf.cond(png, lambda: _png_sides(contents), lambda: _jpeg_sides(contents))
    pixels = tf.reduce_prod(sides)
    check = require(
        tf.reduce_all(sides > 0) & (pixels <= MAX_IMAGE_PIXELS),
        "image_bytes[",
        index,
        f"] must hold 1 to {MAX_IMAGE_PIXELS} pixels; received sides of ",
        lambda: sides,
    )
    with tf.control_dependencies([check]):
        return tf.identity(pixels)


def _starts_with(contents: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(contents, 0, len(magic)), magic)


def _png_sides(contents: tf.Tensor) -> tf.Tensor:
    """Width and height from the IHDR chunk (PNG specification, 11.2.1), int64 ``[2]``."""
    sides = tf.io.decode_raw(
        tf.strings.substr(contents, 16, 8), tf.int32, little_endian=False, fixed_length=8
    )
    return tf.cast(tf.ensure_shape(sides, [2]), tf.int64)


def _jpeg_sides(contents: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.image.extract_jpeg_shape(contents)[:2], tf.int64)
