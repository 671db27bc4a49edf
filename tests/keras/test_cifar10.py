"""CIFAR-10 from files of the published form, made here: pickles as Python 2 wrote them."""

import hashlib
import pickle

import numpy as np
import pytest

from bnkit.keras import load_cifar10
from bnkit.keras.data import cifar10, files

IMAGES = 3


def python_2_pickle(pixels, labels):
    """The bytes of a batch: protocol 2, with byte strings as Python 2 has them."""

    def string(text):
        return b"U" + bytes([len(text)]) + text

    rows, columns = pixels.shape
    data = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
        b"(K\x01(K" + bytes([rows]) + b"M" + columns.to_bytes(2, "little") + b"t"
        b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR"
        b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"I00\nT" + len(data).to_bytes(4, "little") + data + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries = string(b"data") + array + string(b"labels") + numbers
    return b"\x80\x02}(" + entries + b"u."


@pytest.fixture
def batches(tmp_path, monkeypatch, rng):
    """A folder of small batches; what they hold."""
    monkeypatch.delenv("BNKIT_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(files, "SYSTEM_FOLDER", tmp_path / "system")
    folder = tmp_path / "keras/datasets" / cifar10.WITHIN[1]
    folder.mkdir(parents=True)
    held = {}
    for name in list(cifar10.MD5):
        pixels = rng.integers(0, 256, (IMAGES, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, IMAGES).tolist()
        content = python_2_pickle(pixels, labels)
        (folder / name).write_bytes(content)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        monkeypatch.setitem(cifar10.MD5, name, digest)
        held[name] = pixels, labels
    return folder, held


def test_batches_are_joined_in_order_with_colours_last(batches):
    _, held = batches
    (x_train, y_train), (x_test, y_test) = load_cifar10()
    assert (x_train.shape, y_train.shape) == ((5 * IMAGES, 32, 32, 3), (5 * IMAGES, 1))
    assert (x_test.shape, y_test.shape) == ((IMAGES, 32, 32, 3), (IMAGES, 1))
    assert {array.dtype for array in (x_train, y_train, x_test, y_test)} == {np.dtype(np.uint8)}
    wanted = [label for number in range(1, 6) for label in held[f"data_batch_{number}"][1]]
    assert y_train.ravel().tolist() == wanted
    pixels = held["data_batch_2"][0][0]
    red, green, blue = pixels[:1024], pixels[1024:2048], pixels[2048:]
    np.testing.assert_array_equal(x_train[IMAGES, 0, 5], [red[5], green[5], blue[5]])
    np.testing.assert_array_equal(x_train[IMAGES, 1, 0], [red[32], green[32], blue[32]])
    x_train[0] = 0  # the caller may write


def test_keras_reads_the_same_from_the_files(batches):
    """The files that this test makes have the form that Keras knows."""
    cifar = pytest.importorskip("keras.src.datasets.cifar")
    folder, held = batches
    data, labels = cifar.load_batch(str(folder / "test_batch"))
    np.testing.assert_array_equal(data.reshape(IMAGES, -1), held["test_batch"][0])
    assert list(labels) == held["test_batch"][1]


def test_bnkit_data_may_hold_the_folder_as_it_is_unpacked(batches, tmp_path, monkeypatch):
    folder, _ = batches
    monkeypatch.setenv("BNKIT_DATA", str(tmp_path / "chosen"))
    (tmp_path / "chosen").mkdir()
    folder.rename(tmp_path / "chosen/cifar-10-batches-py")
    assert load_cifar10()[1][1].shape == (IMAGES, 1)


def test_a_file_that_is_cut_short_is_named(batches):
    path = batches[0] / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged: it has MD5"):
        load_cifar10()


def test_a_missing_file_says_where_was_looked_and_how_to_get_it(batches):
    (batches[0] / "data_batch_5").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_cifar10()
    for part in (str(batches[0]), "keras.datasets.cifar10.load_data()", "BNKIT_DATA"):
        assert part in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(batches, monkeypatch):
    path = batches[0] / "test_batch"
    path.write_bytes(pickle.dumps({b"data": print}))
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(cifar10.MD5, "test_batch", digest)
    with pytest.raises(pickle.UnpicklingError, match=r"holds no builtins\.print"):
        load_cifar10()
