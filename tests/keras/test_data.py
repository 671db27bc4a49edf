"""Fashion-MNIST: where it is looked for, what is checked, and what is said when it is not there."""

import gzip
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from bnkit.keras import data, load_fashion_mnist


@pytest.fixture
def real_folder() -> Path:
    """The folder of the real files, which `make data` has made sure of."""
    folder = data.find_folder()
    assert folder is not None, data.HOW_TO_GET_IT
    return folder


@pytest.fixture
def empty_home(real_folder, tmp_path, monkeypatch):
    """No place has the files, and Keras cannot download them; returns Keras's empty cache."""
    monkeypatch.delenv("BNKIT_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(data, "SYSTEM_FOLDER", tmp_path / "usr/share/datasets/fashion-mnist")

    def fail():
        raise Exception("URL fetch failure: Name or service not known")

    pretend_keras(monkeypatch, fail)
    return data.keras_cache()


def pretend_keras(monkeypatch, load_data):
    keras = ModuleType("keras")
    keras.datasets = SimpleNamespace(fashion_mnist=SimpleNamespace(load_data=load_data))
    monkeypatch.setitem(sys.modules, "keras", keras)


def link_files(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for file in data.FILES:
        (target / file.name).symlink_to(source / file.name)
    return target


def damage_first_label(folder: Path) -> Path:
    """Replace the labels of the test set by a whole archive with one wrong byte."""
    path = folder / data.TEST_LABELS.name
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[8] ^= 1
    path.unlink()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


# What the files hold


def test_load_gives_the_arrays_of_keras_datasets(real_folder):
    (x_train, y_train), (x_test, y_test) = load_fashion_mnist()
    assert x_train.shape == (60_000, 28, 28)
    assert x_test.shape == (10_000, 28, 28)
    assert {array.dtype for array in (x_train, y_train, x_test, y_test)} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(np.bincount(y_train), [6_000] * 10)
    np.testing.assert_array_equal(np.bincount(y_test), [1_000] * 10)
    # Published mean and standard deviation of the training pixels over 255: 0.2860 and 0.3530.
    assert x_train.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert x_train.std() / 255 == pytest.approx(0.3530, abs=5e-5)
    x_train[0] = 0  # the caller may write


def test_idx_header_is_checked_against_the_expected_shape():
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])
    np.testing.assert_array_equal(data.parse_idx(labels, (3,), "labels"), [7, 8, 9])
    with pytest.raises(ValueError, match="magic number 00000801, expected 00000803"):
        data.parse_idx(labels, (3, 28, 28), "labels")
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(4,\)"):
        data.parse_idx(labels, (4,), "labels")
    with pytest.raises(ValueError, match="2 bytes of data"):
        data.parse_idx(labels[:-1], (3,), "labels")


# Where they are looked for


def test_bnkit_data_comes_before_keras_cache_before_the_system_folder(
    empty_home, real_folder, tmp_path, monkeypatch
):
    assert data.find_folder() is None
    system = link_files(real_folder, data.SYSTEM_FOLDER)
    assert data.find_folder() == system
    cache = link_files(real_folder, empty_home)
    assert data.find_folder() == cache
    monkeypatch.setenv("BNKIT_DATA", str(tmp_path / "chosen"))
    assert data.find_folder() == cache, "a folder without the files is passed over"
    chosen = link_files(real_folder, tmp_path / "chosen")
    assert data.find_folder() == chosen
    (chosen / data.TEST_LABELS.name).unlink()
    assert data.find_folder() == cache, "three files of four do not count"


def test_the_download_is_asked_for_last_and_fills_keras_cache(empty_home, real_folder, monkeypatch):
    pretend_keras(
        monkeypatch,
        lambda: [data.put(real_folder / f.name, empty_home / f.name) for f in data.FILES],
    )
    (_, y_train), _ = load_fashion_mnist()
    assert y_train.shape == (60_000,)
    assert data.find_folder() == empty_home


# What goes wrong


def test_missing_files_say_where_was_looked_and_how_to_get_them(empty_home):
    with pytest.raises(FileNotFoundError) as caught:
        load_fashion_mnist()
    message = str(caught.value)
    for part in (
        str(empty_home),
        str(data.SYSTEM_FOLDER),
        "Name or service not known",
        "make data",
        "BNKIT_DATA",
        "dataset-fashion-mnist",
    ):
        assert part in message


def test_one_wrong_byte_is_found_and_the_file_named(empty_home, real_folder):
    path = damage_first_label(link_files(real_folder, empty_home))
    with pytest.raises(ValueError, match="SHA-256") as caught:
        load_fashion_mnist()
    assert str(path) in str(caught.value)
    assert "make data" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"x" * 5000)[:-9]],
    ids=["empty", "not gzip", "cut short"],
)
def test_a_broken_archive_is_a_value_error(empty_home, real_folder, content):
    path = link_files(real_folder, empty_home) / data.TRAIN_IMAGES.name
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_fashion_mnist()


# The command


def test_importing_the_module_leaves_keras_alone():
    code = "import sys, bnkit.keras.data; print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_the_places_and_the_next_step():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "bnkit.keras.data", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    for part in ("BNKIT_DATA", "KERAS_HOME", "dataset-fashion-mnist", "load_fashion_mnist"):
        assert part in done.stdout


def command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bnkit.keras.data"])
    code = data.main()
    return code, capsys.readouterr()


def test_command_does_nothing_when_the_files_are_there(
    empty_home, real_folder, monkeypatch, capsys
):
    system = link_files(real_folder, data.SYSTEM_FOLDER)
    code, said = command(monkeypatch, capsys)
    assert code == 0
    assert str(system) in said.out
    assert not empty_home.exists()


def test_command_fails_with_the_way_out_when_nothing_works(empty_home, monkeypatch, capsys):
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    code, said = command(monkeypatch, capsys)
    assert code == 1
    assert "Name or service not known" in said.err
    assert data.HOW_TO_GET_IT in said.err


@pytest.fixture
def pretend_apt(real_folder, tmp_path, monkeypatch):
    """An apt that knows the package only after an update of its own lists; returns its log."""
    programs, log = tmp_path / "bin", tmp_path / "apt.log"
    programs.mkdir()
    scripts = {
        "apt-get": f"""echo "$@" >> {log}
case "$*" in
  *update) touch {tmp_path}/updated; echo "one source is out of reach"; exit 100;;
  *) test -e {tmp_path}/updated || {{ echo "E: Unable to locate package"; exit 100; }}
     touch {data.PACKAGE}_1_all.deb;;
esac""",
        "dpkg-deb": f"""test -e "$2" || exit 1
mkdir -p "$3{data.SYSTEM_FOLDER}" && cp {real_folder}/* "$3{data.SYSTEM_FOLDER}" """,
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return log


def test_command_unpacks_the_debian_package_with_lists_of_its_own(
    empty_home, pretend_apt, monkeypatch, capsys
):
    code, said = command(monkeypatch, capsys)
    assert code == 0
    assert str(empty_home) in said.out
    first, update, second = pretend_apt.read_text().splitlines()
    assert first.endswith(f"download {data.PACKAGE}")
    assert "-c" not in first.split()
    assert "-c" in update.split()
    assert update.endswith("update")
    assert "-c" in second.split()
    assert second.endswith(f"download {data.PACKAGE}")
    assert sorted(p.name for p in empty_home.iterdir()) == sorted(f.name for f in data.FILES)


def test_command_replaces_a_damaged_file_in_keras_cache(
    empty_home, real_folder, pretend_apt, monkeypatch, capsys
):
    path = damage_first_label(link_files(real_folder, empty_home))
    code, said = command(monkeypatch, capsys)
    assert code == 0
    assert f"{path} is damaged" in said.out
    assert data.read(empty_home, data.TEST_LABELS).shape == (10_000,)


def test_command_leaves_a_damaged_file_of_the_reader_alone(
    empty_home, real_folder, tmp_path, monkeypatch, capsys
):
    path = damage_first_label(link_files(real_folder, tmp_path / "chosen"))
    monkeypatch.setenv("BNKIT_DATA", str(tmp_path / "chosen"))
    code, said = command(monkeypatch, capsys)
    assert code == 1
    assert str(path) in said.err
    assert path.exists()


def test_put_leaves_the_old_file_when_copying_fails(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_bytes(b"new")
    data.put(source, target)

    def stop_halfway(_, unfinished):
        Path(unfinished).write_bytes(b"ne")
        raise OSError("no space left")

    monkeypatch.setattr(data.shutil, "copyfile", stop_halfway)
    with pytest.raises(OSError, match="no space left"):
        data.put(source, target)
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]
