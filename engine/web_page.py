"""A folder with a page that runs an exported model in the browser, for any static server."""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError
from engine import files
from engine.log import info

EXPORTED = Path(__file__).parent / "exported"  # files that go with a model
VERSION = "1.30.0"  # of onnxruntime-web
ARCHIVE = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # SHA-256
RUNTIME = {  # files of the package, and their names in the folder; servers know .js, not all .mjs
    "dist/ort.wasm.bundle.min.mjs": "ort.js",
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
TIMEOUT = 600  # seconds for npm


@contextmanager
def runtime(given: Path | None = None) -> Iterator[Path]:
    """The folder of the package onnxruntime-web: the one given, or a temporary one that npm
    fetches.

    Raises:
        InputError: if the package cannot be fetched, or is incomplete.
    """
    with tempfile.TemporaryDirectory() as temporary:
        package = given or fetch(Path(temporary))
        for source in RUNTIME:
            if not (package / source).is_file():
                raise InputError(
                    f"{package}: holds no {source}; give the folder of the npm package "
                    f"onnxruntime-web {VERSION}"
                )
        yield package


def write(folder: Path, exported: Path, package: Path) -> None:
    """Writes the page, the model of the folder `exported`, and the runtime into a folder."""
    folder.mkdir()
    for source, name in RUNTIME.items():
        shutil.copyfile(package / source, folder / name)
    for name in ("index.html", "decode.js"):
        shutil.copyfile(EXPORTED / name, folder / name)
    for name in ("model.onnx", "model.json"):
        shutil.copyfile(exported / name, folder / name)


def fetch(folder: Path) -> Path:
    """The package, unpacked in a folder; raises InputError if npm fails or gives another one."""
    name = f"onnxruntime-web@{VERSION}"
    other = "or give its folder with --web-runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"--web needs npm to fetch {name}: install Node.js, {other}")
    info(f"fetching {name} with npm, about 33 MB")
    try:
        subprocess.run(
            [npm, "pack", name, "--silent", "--prefer-offline"],
            cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"npm gave no {name} in {TIMEOUT} seconds; try again, {other}") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines() or ["it gives no reason"]
        raise InputError(f"npm cannot fetch {name} ({lines[0]}); get a network, {other}") from None
    (archive,) = folder.glob("*.tgz")
    if files.sha256(archive) != ARCHIVE:
        raise InputError(f"{archive.name}: not the published {name}; check the registry of npm")
    with tarfile.open(archive) as file:
        for source in RUNTIME:
            target = folder / "package" / source
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.extractfile(f"package/{source}").read())
    return folder / "package"
