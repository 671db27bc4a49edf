"""CIFAR-10 as its authors publish it for Python: six pickles of 10,000 images each.

A pickle can run any code, so this reader knows the three names that a batch is made of, and no
others.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from bnkit.keras.data.files import Array, Split, places

WITHIN = ("cifar-10-batches-py", "cifar-10-batches-py-target/cifar-10-batches-py")
MD5 = {  # as published; of the files
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
HOW_TO_GET_IT = """To get CIFAR-10, do one of these:
  - run `keras.datasets.cifar10.load_data()` once: it downloads 170 MB into Keras's cache;
  - unpack cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, and set
    BNKIT_DATA to the folder that holds cifar-10-batches-py."""


def load() -> tuple[Split, Split]:
    """See ``bnkit.keras.load_cifar10``."""
    for folder in places(WITHIN):
        if all((folder / name).is_file() for name in MD5):
            break
    else:
        looked = "\n".join(f"  - {place}" for place in places(WITHIN))
        raise FileNotFoundError(f"CIFAR-10 is in none of these folders:\n{looked}\n{HOW_TO_GET_IT}")
    *train, test = (read_batch(folder / name, md5) for name, md5 in MD5.items())
    images, labels = zip(*train, strict=True)
    return (np.concatenate(images), np.concatenate(labels)), test


def read_batch(path: Path, md5: str) -> Split:
    """Images of shape (N, 32, 32, 3), labels of shape (N, 1), after the checksum was compared."""
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise ValueError(
            f"{path} is damaged: it has MD5 {digest}, expected {md5}.\n"
            f"Delete it, then get it again.\n{HOW_TO_GET_IT}"
        )
    with path.open("rb") as file:
        batch = BatchUnpickler(file, encoding="bytes").load()
    planes = batch[b"data"].reshape(-1, 3, 32, 32)
    labels = np.array(batch[b"labels"], np.uint8)[:, np.newaxis]
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


class BatchUnpickler(pickle.Unpickler):
    """Reads arrays of bytes, lists, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        found = {
            ("numpy.core.multiarray", "_reconstruct"): empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): byte,
        }.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"a batch of CIFAR-10 holds no {module}.{name}")
        return found


def empty_array(*_: object) -> Array:
    """An array whose shape and data the pickle sets next."""
    return np.empty(0, np.uint8)


def byte(*_: object) -> np.dtype[np.uint8]:
    """The one type of number that a batch holds."""
    return np.dtype(np.uint8)
