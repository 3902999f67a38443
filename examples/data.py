"""The images the examples train on: where they come from, how they are read, how batches are made of them.

Two data sets. CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32. Where it cannot be had,
Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 60,000 + 10,000 grey images of 28 x 28, padded with black to 32 x 32,
the one channel repeated three times, so that the same model takes both.

`locate` finds or fetches a folder, `load` reads it, `augment` and `normalise` make a batch. Needs neither torchvision
nor gtopk: which rank may download is the caller's decision. Nothing that was downloaded is unpickled or executed.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cifar10_python
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

__all__ = [
    "DataError",
    "DataSet",
    "Split",
    "augment",
    "cache_folder",
    "debian_files",
    "load",
    "locate",
    "make_folder",
    "normalise",
]

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_PYTHON_FOLDER = "cifar-10-batches-py"
CIFAR10_TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
CIFAR10_TEST = ["test_batch.bin"]

FASHION_PACKAGE = "dataset-fashion-mnist"
DEBIAN_SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "debian_package.sh"
FASHION_SYSTEM = Path("/usr/share/datasets/fashion-mnist")
FASHION_FOLDER = "fashion-mnist"
FASHION_FILES = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

SIDE = 32
CLASSES = 10
CONNECT_SECONDS = 10.0

Bytes = npt.NDArray[np.uint8]


class DataError(RuntimeError):
    """No data, or files that are not what they should be. The text says what to do."""


@dataclass(frozen=True)
class Split:
    """`images` (count, channels, 32, 32) of uint8, `labels` (count,) of int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSet:
    """`mean` and `std` are those of each channel of the training images, in pixels from 0 to 255."""

    name: str
    note: str
    folder: Path
    train: Split
    test: Split
    mean: Tensor
    std: Tensor

    def describe(self) -> str:
        note = f", {self.note}" if self.note else ""
        return f"{self.name} from {self.folder} ({len(self.train)} training and {len(self.test)} test images{note})"


# ---- where the files are --------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """$GTOPK_CACHE, else ~/.cache/gtopk."""
    return Path(os.environ.get("GTOPK_CACHE") or Path.home() / ".cache" / "gtopk")


def locate(
    data: str | None = None,
    *,
    download: bool = True,
    download_seconds: float = 600.0,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Gives the folder of a data set, downloading it into the cache if need be.

    Parameters
    ----------
    data : str, optional
        A folder with either data set; or "cifar10" or "fashion-mnist", for that one from the cache or the network. By
        default CIFAR-10, and Fashion-MNIST where CIFAR-10 cannot be had.
    download : bool
        Whether the network may be used. One process on each host should; the others wait for it.
    download_seconds : float
        A download of CIFAR-10 that has not ended by then is given up.
    progress : bool
        Whether to draw a progress bar.
    say : callable
        Told, in one line, why CIFAR-10 was not used.

    Raises
    ------
    DataError
        Nothing was found. Names what was tried.
    """
    if data not in (None, "cifar10", "fashion-mnist"):
        return _given(Path(data))
    try:
        if data != "fashion-mnist":
            return _cifar10(download, download_seconds, progress)
    except DataError as error:
        if data == "cifar10":
            raise
        reason = error
    else:
        reason = DataError("CIFAR-10 was not asked for")
    try:
        folder = _fashion_mnist(download)
    except DataError as error:
        raise DataError(f"{reason}; {error}. Give a folder that holds either data set with --data") from error
    if data is None:
        say(f"{reason}; using Fashion-MNIST")
    return folder


def _given(folder: Path) -> Path:
    for candidate in (folder, folder / CIFAR10_FOLDER, folder / CIFAR10_PYTHON_FOLDER, folder / FASHION_FOLDER):
        if _is_cifar10(candidate) or cifar10_python.is_cifar10_python(candidate) or _is_fashion_mnist(candidate):
            return candidate
    raise DataError(
        f"{folder} holds neither CIFAR-10 (data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the Python "
        f"version, without .bin) nor Fashion-MNIST ({', '.join(FASHION_FILES)})"
    )


def _is_cifar10(folder: Path) -> bool:
    return all((folder / name).is_file() for name in CIFAR10_TRAIN + CIFAR10_TEST)


def _is_fashion_mnist(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FASHION_FILES)


def _cifar10(download: bool, seconds: float, progress: bool) -> Path:
    folder = cache_folder() / CIFAR10_FOLDER
    if _is_cifar10(folder):
        return folder
    if not download:
        raise DataError(f"CIFAR-10 is not in {folder}")

    def fill(scratch: Path, target: Path) -> None:
        archive = scratch / "cifar-10-binary.tar.gz"
        _download(CIFAR10_URL, archive, CIFAR10_MD5, seconds, progress)
        _unpack(archive, CIFAR10_TRAIN + CIFAR10_TEST, target)

    try:
        make_folder(folder, fill)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"CIFAR-10 could not be downloaded ({error})") from error
    return folder


def _fashion_mnist(download: bool) -> Path:
    try:
        return debian_files(FASHION_PACKAGE, FASHION_FILES, FASHION_SYSTEM, cache_folder() / FASHION_FOLDER, download)
    except DataError as error:
        raise DataError(f"Fashion-MNIST could not be had either ({error})") from error


def debian_files(package: str, names: list[str], system: Path, folder: Path, download: bool) -> Path:
    """A folder with the files called `names` of a Debian package: that of the installed package, else `folder`.

    `folder` is filled from the package, which is unpacked and not installed, if need be and `download` allows it.
    """
    for candidate in (folder, system):
        if all((candidate / name).is_file() for name in names):
            return candidate
    if not download:
        raise DataError(f"{names[0]} of Debian's package {package} is neither in {folder} nor in {system}")

    def fill(scratch: Path, target: Path) -> None:
        done = subprocess.run([DEBIAN_SCRIPT, package, scratch], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise OSError(f"{DEBIAN_SCRIPT.name}: {''.join(last) or f'exit status {done.returncode}'}")
        target.mkdir()
        for name in names:
            found = next(scratch.rglob(name), None)
            if found is None:
                raise OSError(f"the package has no {name}")
            shutil.move(found, target / name)

    try:
        make_folder(folder, fill)
    except OSError as error:
        raise DataError(f"Debian's package {package} could not be had ({error})") from error
    return folder


# ---- fetching -------------------------------------------------------------------------------------------------------


def make_folder(folder: Path, fill: Callable[[Path, Path], None]) -> None:
    """Makes `folder` appear at once and complete: `fill(scratch, target)` writes `target`, which is then renamed.

    What an interrupted or failed run leaves behind is never under the final name. Of two processes that do this at the
    same time, the later one throws its copy away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        target = Path(scratch) / "complete"
        fill(Path(scratch), target)
        try:
            target.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _download(url: str, file: Path, md5: str, seconds: float, progress: bool) -> None:
    """Raises OSError when the server does not answer, the time is up, or the checksum is another."""
    until = time.monotonic() + seconds
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer, file.open("wb") as out:
        length = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(desc=file.name, total=length, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
            while chunk := answer.read(1 << 20):
                if time.monotonic() > until:
                    raise OSError(f"{url} is too slow: {bar.n} bytes in {seconds:.0f} s")
                digest.update(chunk)
                out.write(chunk)
                bar.update(len(chunk))
    if digest.hexdigest() != md5:
        raise OSError(f"{url} has MD5 {digest.hexdigest()}, expected {md5}")


def _unpack(archive: Path, names: list[str], folder: Path) -> None:
    """Writes the files called `names`, from whatever folder of the archive, into `folder`; nothing else is read."""
    folder.mkdir()
    missing = set(names)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            source = tar.extractfile(member) if member.isfile() and name in missing else None
            if source is not None:
                with source, (folder / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
                missing.remove(name)
    if missing:
        raise OSError(f"{archive.name} has no {', '.join(sorted(missing))}")


# ---- reading --------------------------------------------------------------------------------------------------------


def load(folder: Path) -> DataSet:
    """Reads a folder that `locate` gave. Raises DataError naming the file that is not what it should be."""
    if _is_cifar10(folder):
        name, note = "CIFAR-10", ""
        train, test = (_read_cifar10(folder, names) for names in (CIFAR10_TRAIN, CIFAR10_TEST))
    elif cifar10_python.is_cifar10_python(folder):
        name, note = "CIFAR-10", ""
        groups = (cifar10_python.TRAIN, cifar10_python.TEST)
        train, test = (_read_cifar10_python(folder, names) for names in groups)
    else:
        name, note = "Fashion-MNIST", "padded to 32 x 32, the channel repeated three times"
        train, test = (_read_fashion_mnist(folder, part) for part in ("train", "t10k"))
    mean, std = _moments(train.images)
    return DataSet(name, note, folder, train, test, mean, std)


def _read_cifar10(folder: Path, names: list[str]) -> Split:
    """A record is one byte of label, then 3 x 32 x 32 bytes of pixels."""
    record = 1 + 3 * SIDE * SIDE
    parts: list[Bytes] = []
    for name in names:
        content = np.fromfile(folder / name, np.uint8)
        if content.size == 0 or content.size % record:
            raise DataError(
                f"{folder / name} has {content.size} bytes, not a multiple of {record}: delete and try again"
            )
        parts.append(content.reshape(-1, record))
    records = np.concatenate(parts)
    return _split(records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0], folder)


def _read_cifar10_python(folder: Path, names: list[str]) -> Split:
    try:
        parts = [cifar10_python.read(folder / name) for name in names]
    except ValueError as error:
        raise DataError(str(error)) from error
    return _split(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), folder)


def _read_fashion_mnist(folder: Path, part: str) -> Split:
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", axes=3)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", axes=1)
    if len(images) != len(labels) or images.shape[1:] != (28, 28):
        raise DataError(f"{folder}: {part} has images of shape {images.shape} and {len(labels)} labels")
    border = (SIDE - 28) // 2
    return _split(np.pad(images[:, None], ((0, 0), (0, 0), (border, border), (border, border))), labels, folder)


def _read_idx(file: Path, axes: int) -> Bytes:
    """The IDX format: 0, 0, 8 (unsigned bytes), the number of axes; their lengths as big-endian words; the bytes."""
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{file} is damaged ({error}): delete its folder and try again") from error
    start = 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], ">u4"))
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) != start + int(np.prod(shape)):
        raise DataError(f"{file} is no IDX file of bytes with {axes} axes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _split(images: Bytes, labels: Bytes, folder: Path) -> Split:
    if labels.max() >= CLASSES:
        raise DataError(f"{folder} has the label {labels.max()}; labels are 0 to {CLASSES - 1}")
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, from its histogram: exact, and without a copy in floating point."""
    values = torch.arange(256, dtype=torch.float64)
    moments = []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share /= share.sum()
        mean = (share * values).sum()
        moments.append(torch.stack([mean, (share * (values - mean) ** 2).sum().sqrt()]))
    mean, std = torch.stack(moments, dim=1).float()
    return mean, std.clamp(min=1.0)


# ---- batches --------------------------------------------------------------------------------------------------------


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (batch, 1 or 3, 32, 32) to float (batch, 3, 32, 32) of mean 0 and standard deviation 1."""
    x = (images.float() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    return x.expand(-1, 3, -1, -1)


def augment(images: Tensor, generator: torch.Generator, margin: int = 4) -> Tensor:
    """Shifts each image by up to `margin` pixels each way, filling with 0, and mirrors half of them.

    The result's strides are channels-last, the layout in which convolutions are fastest on CPUs and tensor cores.
    """
    count, _, height, width = images.shape
    device = images.device
    draw = torch.randint(0, 2 * margin + 1, (2, count, 1), generator=generator).to(device)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator).to(device) == 1
    rows = draw[0] + torch.arange(height, device=device)
    columns = draw[1] + torch.arange(width, device=device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(images, (margin,) * 4)
    which = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[which, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
