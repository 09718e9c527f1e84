"""Image folders: what is read, and what is said about a folder that cannot be."""

import shutil

import numpy as np
import pytest
from PIL import Image

from der_tf import data


def load(folder, **kw):
    return data.load("folder", folder, batch_size=4, augment=False, **kw)


def examples(dataset):
    batches = list(dataset.as_numpy_iterator())
    return np.concatenate([x for x, _ in batches]), [int(label) for _, y in batches for label in y]


def test_classes_and_pixels_are_those_of_the_files(write_images):
    folder = write_images(classes=("b", "a", "c"))
    (folder / "train" / "a" / "notes.txt").write_text("not an image")
    (folder / "train" / ".hidden").mkdir()
    loaded = load(folder)
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.input_shape == (16, 16, 3)
    sizes = (loaded.train_size, loaded.validation_size, loaded.test_size)
    assert sum(sizes) == 18
    assert sizes[2] == 4  # 20 %
    found = {}
    for part in (loaded.train, loaded.validation, loaded.test):
        for image, label in zip(*examples(part), strict=True):
            found[np.round(image * 255).astype(np.uint8).tobytes()] = loaded.class_names[label]
    files = {
        np.asarray(Image.open(path)).tobytes(): path.parent.name
        for path in folder.glob("train/*/*.png")
    }
    assert found == files


@pytest.mark.parametrize("image_size", [None, 100])
def test_val_is_for_testing_only(write_images, image_size):
    write_images("train", count=10)
    folder = write_images("val", count=3, classes=("dog",), seed=1)
    loaded = load(folder, image_size=image_size)
    assert (loaded.train_size + loaded.validation_size, loaded.test_size) == (20, 3)
    assert examples(loaded.test)[1] == [1, 1, 1]


@pytest.mark.parametrize("image_size", [16, 100])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_colour_modes_become_rgb(write_images, mode, image_size):
    folder = write_images(count=4)
    suffix = "jpg" if mode == "CMYK" else "png"
    for path in folder.glob("train/cat/*.png"):
        Image.open(path).convert(mode).save(path.with_suffix(f".{suffix}"))
        if suffix != "png":
            path.unlink()
    loaded = load(folder, image_size=image_size)
    images, _ = examples(loaded.train)
    assert {image.shape for image in images} == {(image_size, image_size, 3)}
    if mode == "L":
        grey = [image for image in images if np.ptp(image, axis=-1).max() == 0]
        assert 0 < len(grey) < len(images)


@pytest.mark.parametrize("image_size", [16, 100])  # read by Pillow, by TensorFlow
def test_sixteen_bit_grey_is_read_by_its_high_byte(write_images, image_size):
    folder = write_images("train", count=10)
    deep = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 200
    place = folder / "val" / "cat"
    place.mkdir(parents=True)
    Image.fromarray(deep).save(place / "deep.png")
    Image.fromarray((deep >> 8).astype(np.uint8)).save(place / "grey.png")
    (found, expected), _ = examples(load(folder, image_size=image_size).test)
    np.testing.assert_array_equal(found, expected)


def test_size_defaults_to_that_of_small_images_and_else_to_224(write_images):
    folder = write_images(size=(20, 20))
    assert load(folder).input_shape == (20, 20, 3)
    write_images(classes=("large",), size=(30, 20))
    assert load(folder).input_shape == (224, 224, 3)
    assert load(folder, image_size=24).input_shape == (24, 24, 3)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def fill_with_text(path):
    path.write_text("this is not an image")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, fill_with_text, empty])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("image_size", [None, 100])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_corrupt_file_is_named_before_training(write_images, damage, suffix, image_size, part):
    write_images("train", size=(40, 40), suffix=suffix)
    folder = write_images("val", size=(40, 40), suffix=suffix)
    victim = folder / part / "dog" / f"3.{suffix}"
    damage(victim)
    with pytest.raises(ValueError, match="not a readable image") as caught:
        load(folder, image_size=image_size)
    assert str(victim) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_format_that_cannot_be_streamed_is_named(write_images):
    folder = write_images(size=(100, 100))
    odd = folder / "train" / "cat" / "odd.png"
    Image.open(folder / "train" / "cat" / "0.png").save(odd, format="TIFF")
    with pytest.raises(ValueError, match=r"odd\.png is a TIFF image; accepted are"):
        load(folder)


def no_train(folder):
    shutil.rmtree(folder / "train")


def no_class(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    (folder / "train" / "picture.png").touch()


def empty_class(folder):
    (folder / "train" / "bird").mkdir()


def unknown_class(folder):
    shutil.copytree(folder / "val" / "cat", folder / "val" / "bird")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (no_train, r"train/CLASS/\*, .*train is missing"),
        (no_class, r"train has no class folder"),
        (empty_class, r"bird holds no image \(\.jpg, "),
        (unknown_class, r"val has a class 'bird' that the training part has not"),
    ],
)
def test_a_folder_laid_out_otherwise_is_explained(write_images, fault, message):
    write_images("train")
    folder = write_images("val")
    fault(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_needs_its_place(tmp_path):
    with pytest.raises(ValueError, match="needs data_dir"):
        data.load("folder")
    with pytest.raises(ValueError, match=r"existing folder, received .*nowhere"):
        data.load("folder", tmp_path / "nowhere")
