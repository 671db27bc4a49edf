"""Data sets of images from the first place that has them, checked byte for byte.

``python -m bnkit.keras.data`` gets MNIST and Fashion-MNIST; only a download imports Keras.
"""

from bnkit.keras.data import cifar10, fetch, files
from bnkit.keras.data.files import Split

__all__ = ["load_cifar10", "load_fashion_mnist", "load_mnist"]


def load_fashion_mnist() -> tuple[Split, Split]:
    """Load Fashion-MNIST as ``keras.datasets.fashion_mnist.load_data`` does.

    Looks for the four idx files, in this order, in the folder that ``BNKIT_DATA`` names (or in its
    folder ``fashion-mnist``), in Keras's cache, and in the folder of Debian's package
    ``dataset-fashion-mnist``; where none has them, Keras downloads them into its cache.

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
    return _load(files.FASHION_MNIST)


def load_mnist() -> tuple[Split, Split]:
    """Load MNIST as ``keras.datasets.mnist.load_data`` does.

    Looks for ``mnist``, a folder of the four idx files, and for ``mnist.npz``, in the folder that
    ``BNKIT_DATA`` names and then in Keras's cache; where neither has it, Keras downloads it.

    Returns:
        As ``load_fashion_mnist``: the same shapes and types.

    Raises:
        FileNotFoundError: no place has the files, and the download failed.
        ValueError: a file is damaged; the message names it.

    Source: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document
    recognition".
    """
    return _load(files.MNIST)


def load_cifar10() -> tuple[Split, Split]:
    """Load CIFAR-10 as ``keras.datasets.cifar10.load_data`` does, colours last.

    Looks for the folder ``cifar-10-batches-py`` in the folder that ``BNKIT_DATA`` names and in
    Keras's cache, which ``keras.datasets.cifar10.load_data()`` fills. Nothing is downloaded.

    Returns:
        ``((x_train, y_train), (x_test, y_test))``, all uint8: images of shape (50000, 32, 32, 3)
        and (10000, 32, 32, 3), labels of shape (50000, 1) and (10000, 1).

    Raises:
        FileNotFoundError: no place has the files; the message says how to get them.
        ValueError: a file is damaged; the message names it.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images", section 3.
    """
    return cifar10.load()


def _load(data: files.DataSet) -> tuple[Split, Split]:
    place = files.find(data)
    if place is None:
        try:
            place = fetch.download(data)
        except OSError as error:
            looked = "\n".join(f"  - {place}" for place in files.places(data.within))
            raise FileNotFoundError(
                f"{data.name} is in none of these places:\n{looked}\n{error}\n"
                f"{files.how_to_get(data)}"
            ) from error
    return files.read(data, place)
