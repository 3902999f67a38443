"""AN4, CMU's corpus of spelled words and numbers (948 + 130 utterances, 50 minutes): found, read, made into spectra.

In CMU's layout: etc/an4_train.fileids, etc/an4_train.transcription, the same for test, and wav/*/*/*.raw, 16 kHz, 16 bits, in
either order of bytes. A folder or an archive (an4_raw.bigendian.tar.gz and the like) is given with --data; without it the
sixteen utterances that come with this folder are read. Nothing that is read is executed.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from data import DataError, cache_folder, make_folder
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = ["LETTERS", "RATE", "Utterance", "decode", "encode", "load", "locate", "spectra"]

SAMPLE = Path(__file__).resolve().parent / "an4"
LETTERS = "_'ABCDEFGHIJKLMNOPQRSTUVWXYZ "  # the first is CTC's blank
RATE = 16_000
WINDOW, STRIDE = 320, 160  # 20 and 10 ms
PARTS = ("train", "test")


@dataclass(frozen=True)
class Utterance:
    """`sound` is int16 at `RATE`; `words` is what was said, in capitals."""

    name: str
    sound: npt.NDArray[np.int16]
    words: str


# ---- files ----------------------------------------------------------------------------------------------------------


def locate(data: str | None, *, unpack: bool = True) -> Path:
    """The folder with etc/ and wav/; that of an archive is in the cache, where `unpack` allows to put it."""
    given = Path(data) if data else SAMPLE
    if given.is_file():
        return _unpacked(given, unpack)
    for candidate in (given, given / "an4"):
        if (candidate / "etc" / "an4_train.fileids").is_file():
            return candidate
    raise DataError(f"{given} is neither an archive of AN4 nor a folder with etc/an4_train.fileids and wav/")


def _unpacked(archive: Path, unpack: bool) -> Path:
    """Named by the archive's content, so that another one is never taken for it."""
    with archive.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    folder = cache_folder() / f"an4-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    if not unpack:
        raise DataError(f"{archive} is not unpacked in {folder}")

    def fill(_: Path, target: Path) -> None:
        with tarfile.open(archive) as tar:
            for member in tar:
                place = _place(member.name)
                source = tar.extractfile(member) if place and member.isfile() else None
                if place and source:
                    file = target / place
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with source, file.open("wb") as out:
                        shutil.copyfileobj(source, out)
        if not (target / "etc" / "an4_train.fileids").is_file():
            raise OSError("it has no etc/an4_train.fileids")

    try:
        make_folder(folder, fill)
    except (OSError, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): is it complete?") from error
    return folder


def _place(name: str) -> str | None:
    """Where a member of the archive goes; None: nowhere."""
    parts = PurePosixPath(name).parts
    wanted = (("etc", ".fileids"), ("etc", ".transcription"), ("wav", ".raw"))
    for top, ending in wanted:
        if top in parts and name.endswith(ending) and ".." not in parts:
            return "/".join(parts[parts.index(top) :])
    return None


def load(folder: Path) -> dict[str, list[Utterance]]:
    """The utterances of both parts. Raises DataError naming the first one that cannot be used."""
    parts = {part: list(_read(folder, part)) for part in PARTS}
    order = _byte_order(parts["train"][0][1]) if parts["train"] else ">i2"
    return {
        part: [_utterance(name, np.frombuffer(content, order).astype(np.int16), words) for name, content, words in raw]
        for part, raw in parts.items()
    }


def _read(folder: Path, part: str) -> Iterator[tuple[str, bytes, str]]:
    try:
        names = (folder / "etc" / f"an4_{part}.fileids").read_text("ascii").split()
        lines = (folder / "etc" / f"an4_{part}.transcription").read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"AN4's list of files or words cannot be read ({error})") from error
    said = {}
    for line in filter(str.strip, lines):
        match = re.fullmatch(r"(?:<s> )?(.*?)(?: </s>)? \((\S+)\)\s*", line)
        if match is None:
            raise DataError(f"{folder}/etc/an4_{part}.transcription has the line {line!r}, not WORDS (NAME)")
        said[match[2]] = match[1]
    for name in names:
        file = folder / "wav" / f"{name}.raw"
        words = said.get(file.stem)
        if not words or set(words) - set(LETTERS[1:]):
            raise DataError(
                f"{folder}/etc/an4_{part}.transcription has no words in capitals for {file.stem}: {words!r}"
            )
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"an utterance cannot be read: {error}") from error
        if len(content) % 2:
            raise DataError(f"{file} has {len(content)} bytes, an odd number: it is truncated, or no raw sound")
        yield str(file), content, words


def _byte_order(content: bytes) -> str:
    """Sound is smooth in the right order of bytes and noise in the other."""
    return min(">i2", "<i2", key=lambda order: np.abs(np.diff(np.frombuffer(content, order).astype(np.int64))).sum())


def _utterance(name: str, sound: npt.NDArray[np.int16], words: str) -> Utterance:
    """CTC needs a step for each letter, and one between letters that are alike; a step is two strides."""
    needed = len(words) + sum(a == b for a, b in pairwise(words))
    if len(sound) // (2 * STRIDE) < needed:
        raise DataError(f"{name} lasts {len(sound) / RATE:.2f} s, too short for {words!r}: it is truncated")
    return Utterance(name, sound, words)


# ---- batches --------------------------------------------------------------------------------------------------------


def spectra(utterances: list[Utterance], device: torch.device) -> tuple[Tensor, Tensor]:
    """Log magnitudes of shape (batch, 1, WINDOW / 2 + 1, frames), each of mean 0 and deviation 1, zeros behind its end; and
    the number of frames of each."""
    window = torch.hamming_window(WINDOW, device=device)
    frames = []
    for utterance in utterances:
        sound = torch.from_numpy(utterance.sound).to(device).float() / 32768
        spectrum = torch.stft(
            sound, WINDOW, STRIDE, window=window, center=True, pad_mode="constant", return_complex=True
        )
        magnitude = spectrum.abs().log1p()
        frames.append(((magnitude - magnitude.mean()) / magnitude.std().clamp(min=1e-6)).t())
    lengths = torch.tensor([len(one) for one in frames])
    return pad_sequence(frames, batch_first=True).transpose(1, 2).unsqueeze(1), lengths


def encode(words: str) -> Tensor:
    return torch.tensor([LETTERS.index(letter) for letter in words])


def decode(letters: Tensor) -> str:
    """Greedy: the most likely letter of each step; repeated ones are one, blanks are none."""
    collapsed = torch.unique_consecutive(letters).tolist()
    return "".join(LETTERS[letter] for letter in collapsed if letter != 0)
