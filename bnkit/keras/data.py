"""Fashion-MNIST from the first place that has it, checked byte for byte.

The data set is that of Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", 2017, arXiv:1708.07747.

``load_fashion_mnist()`` reads the files; ``python -m bnkit.keras.data`` gets them first.
Only a download imports Keras.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_fashion_mnist"]

Array = NDArray[np.uint8]


class IdxFile(NamedTuple):
    """What one file of the data set must hold."""

    name: str
    shape: tuple[int, ...]
    sha256: str  # of the content: archives of the same content differ in their headers


TRAIN_IMAGES = IdxFile(
    "train-images-idx3-ubyte.gz",
    (60_000, 28, 28),
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
)
TRAIN_LABELS = IdxFile(
    "train-labels-idx1-ubyte.gz",
    (60_000,),
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
)
TEST_IMAGES = IdxFile(
    "t10k-images-idx3-ubyte.gz",
    (10_000, 28, 28),
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
)
TEST_LABELS = IdxFile(
    "t10k-labels-idx1-ubyte.gz",
    (10_000,),
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

PACKAGE = "dataset-fashion-mnist"
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SILENT_HOST_SECONDS = 15.0

HOW_TO_GET_IT = f"""To get the data, do one of these:
  - run `make data`, or `python -m bnkit.keras.data`, which is the same;
  - install Debian's or Ubuntu's package `{PACKAGE}`;
  - set BNKIT_DATA to a folder that holds {", ".join(file.name for file in FILES)}."""


def load_fashion_mnist() -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Load Fashion-MNIST as ``keras.datasets.fashion_mnist.load_data`` does.

    Looks for the four idx files, in this order, in the folder that ``BNKIT_DATA`` names, in
    Keras's cache, and in the folder of Debian's package ``dataset-fashion-mnist``; where none
    has them, Keras downloads them into its cache.

    Returns:
        ``((x_train, y_train), (x_test, y_test))``, all uint8: images of shape (60000, 28, 28)
        and (10000, 28, 28), labels of shape (60000,) and (10000,).

    Raises:
        FileNotFoundError: no place has the files, and the download failed.
        ValueError: a file is damaged; the message names it.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747.

    >>> (x_train, y_train), (x_test, y_test) = load_fashion_mnist()
    >>> x_train.shape, x_train.dtype, y_test.shape
    ((60000, 28, 28), dtype('uint8'), (10000,))
    """
    folder = find_folder()
    if folder is None:
        try:
            folder = download()
        except OSError as error:
            looked = "\n".join(f"  - {place}" for place in places())
            raise FileNotFoundError(
                f"Fashion-MNIST is in none of these folders:\n{looked}\n{error}\n{HOW_TO_GET_IT}"
            ) from error
    train = read(folder, TRAIN_IMAGES), read(folder, TRAIN_LABELS)
    test = read(folder, TEST_IMAGES), read(folder, TEST_LABELS)
    return train, test


def keras_cache() -> Path:
    """The folder in which Keras keeps its own copy."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home).expanduser() / "datasets" / "fashion-mnist"


def places() -> list[Path]:
    """The folders where the files may lie, in the order in which they are tried."""
    chosen = os.environ.get("BNKIT_DATA")
    return [*([Path(chosen).expanduser()] if chosen else []), keras_cache(), SYSTEM_FOLDER]


def find_folder() -> Path | None:
    """The first place that has all four files, or None."""
    for folder in places():
        if all((folder / file.name).is_file() for file in FILES):
            return folder
    return None


def read(folder: Path, file: IdxFile) -> Array:
    """The array that one file holds, after its checksum has been compared."""
    path = folder / file.name
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(damaged(path, f"it is not a whole gzip archive ({error})")) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise ValueError(damaged(path, f"its content has SHA-256 {digest}, expected {file.sha256}"))
    return parse_idx(content, file.shape, path.name)


def damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged: {reason}.\nDelete it, then get it again.\n{HOW_TO_GET_IT}"


def parse_idx(content: bytes, shape: tuple[int, ...], name: str) -> Array:
    """Read the idx format: two zero bytes, a type byte (8: uint8), the rank, the sizes, the data.

    Raises ValueError when the magic number, the sizes or the length are not those of `shape`.
    """
    magic, start = bytes([0, 0, 8, len(shape)]), 4 + 4 * len(shape)
    if content[:4] != magic:
        raise ValueError(f"{name}: magic number {content[:4].hex()}, expected {magic.hex()}")
    sizes = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if sizes != shape:
        raise ValueError(f"{name}: shape {sizes}, expected {shape}")
    if len(content) - start != np.prod(shape):
        raise ValueError(f"{name}: {len(content) - start} bytes of data for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # writable


def download() -> Path:
    """Have Keras download the files into its cache; OSError when the host cannot be reached."""
    keras_cache().mkdir(parents=True, exist_ok=True)  # Keras goes elsewhere if it cannot write
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_HOST_SECONDS)
    try:
        import keras

        keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # a bare Exception when the host is out of reach
        raise OSError(f"The download through keras.datasets failed: {error}") from error
    finally:
        socket.setdefaulttimeout(patience)
    return keras_cache()


def unpack_debian_package() -> Path:
    """Put the files of Debian's package into Keras's cache; needs apt and dpkg, but not root.

    The system's lists of packages are used where they know the package. In a fresh container they
    are empty, so lists of our own are fetched into a temporary folder; nothing is installed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sub in ("lists/partial", "cache/archives/partial"):
            (folder / sub).mkdir(parents=True)
        own = folder / "apt.conf"
        # The hooks would clean the system's caches, which only root may do.
        own.write_text(
            f'Dir::State::Lists "{folder}/lists";\nDir::Cache "{folder}/cache";\n'
            "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
        )
        # As root, apt would hand the download to a user who may not write in our folder.
        get = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root"]
        try:
            run([*get, "download", PACKAGE], folder)
        except OSError:
            with_own_lists = [*get, "-c", str(own)]
            with suppress(
                OSError
            ):  # one source of several may be out of reach; this need not be ours
                run([*with_own_lists, "update"], folder)
            run([*with_own_lists, "download", PACKAGE], folder)
        (package,) = folder.glob("*.deb")
        run(["dpkg-deb", "-x", package.name, "unpacked"], folder)
        unpacked = folder / "unpacked" / SYSTEM_FOLDER.relative_to("/")
        for file in FILES:
            read(unpacked, file)
        for file in FILES:
            put(unpacked / file.name, keras_cache() / file.name)
    return keras_cache()


def run(command: list[str], folder: Path) -> None:
    """Run a command; OSError with the end of what it said when it fails."""
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise OSError(f"`{' '.join(command)}` failed:\n{said}")


def put(source: Path, target: Path) -> None:
    """Copy a file so that the target appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name + ".")
    os.close(handle)
    unfinished = Path(name)
    try:
        shutil.copyfile(source, unfinished)
        unfinished.chmod(0o644)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def delete_damaged_in_keras_cache() -> None:
    """Make room for a fresh copy of what an interrupted download has left behind."""
    for file in FILES:
        path = keras_cache() / file.name
        if path.is_file():
            try:
                read(path.parent, file)
            except ValueError:
                print(f"{path} is damaged: deleting it.")
                path.unlink()


def get() -> Path:
    """The folder that has the files, after getting them where no folder had them."""
    delete_damaged_in_keras_cache()
    folder = find_folder()
    if folder is not None:
        return folder
    try:
        return download()
    except OSError as error:
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise
        print(f"{error}\nTrying the system's package {PACKAGE} instead (about 30 MB).", flush=True)
        return unpack_debian_package()


def main() -> int:
    """Get the data and say where it lies."""
    argparse.ArgumentParser(
        prog="python -m bnkit.keras.data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Get Fashion-MNIST: 60,000 images for training and 10,000 for testing, 28 x 28 grey\n"
            "pixels, ten kinds of clothing. Nothing is done where the files are there already."
        ),
        epilog=(
            "The files are looked for in these folders, in this order:\n"
            "  1. the one that BNKIT_DATA names, if it is set\n"
            f"  2. Keras's cache, {keras_cache()} (KERAS_HOME moves it)\n"
            f"  3. {SYSTEM_FOLDER}, filled by the Debian package {PACKAGE}\n"
            "Otherwise they go into Keras's cache: by keras.datasets, or, where its host cannot\n"
            "be reached and apt is at hand, out of the Debian package (no root needed, nothing is\n"
            "installed). The SHA-256 of every file is checked.\n\n"
            "Afterwards: from bnkit.keras import load_fashion_mnist"
        ),
    ).parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        folder = get()
        for file in FILES:
            read(folder, file)
    except (OSError, ValueError) as error:
        print(f"{error}\n{HOW_TO_GET_IT}", file=sys.stderr)
        return 1
    print(f"Fashion-MNIST is in {folder}: four files, checksums right.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
