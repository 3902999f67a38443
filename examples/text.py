"""Text for language models: where it comes from, how it is read, and how it becomes numbers.

Penn Treebank in Mikolov's form when a folder with it is given (ptb.train.txt, ptb.valid.txt, ptb.test.txt, whose checksums
are known); or any text in files train.txt, valid.txt and test.txt. Otherwise the six novels of Jane Austen in Debian's
package r-cran-janeaustenr: 0.73 million words, and 0.03 million ends of sentences. Nothing that was downloaded is
executed: R is not needed.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from data import DataError, cache_folder, debian_files
from torch import Tensor

__all__ = ["PARTS", "Corpus", "books", "load", "locate"]

PARTS = ("train", "valid", "test")
PTB_MD5 = {  # as in torchtext and elsewhere
    "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "valid": "aa0affc06ff7c36e977d7cd49e3839bf",
    "test": "8b80168b89c18661a38ef683c0dc3721",
}
PACKAGE = "r-cran-janeaustenr"
NOVELS = "Rdata.rdb"
SYSTEM = Path("/usr/lib/R/site-library/janeaustenr/data")
BOOKS = 6
HELD_OUT = 0.05  # of each book for validation, and as much for the test

END, UNKNOWN = "<eos>", "<unk>"


@dataclass(frozen=True)
class Corpus:
    """`words` by their numbers; `parts` has the words of each part one after the other, as int64."""

    name: str
    folder: Path
    words: list[str]
    parts: dict[str, Tensor]

    def describe(self) -> str:
        lengths = ", ".join(f"{len(self.parts[part])} in {part}" for part in PARTS)
        return f"{self.name} from {self.folder} ({len(self.words)} different words; {lengths})"


def locate(data: str | None, *, download: bool = True) -> Path:
    """The folder of the text; that of the novels is fetched into the cache if need be. Raises `DataError`."""
    if data is None or data == "novels":
        return debian_files(PACKAGE, [NOVELS], SYSTEM, cache_folder() / "janeausten", download)
    folder = Path(data)
    for candidate in (folder, folder / "simple-examples" / "data", folder / "data"):
        if all((candidate / f"ptb.{part}.txt").is_file() for part in PARTS):
            return candidate
    if all((folder / f"{part}.txt").is_file() for part in PARTS) or (folder / NOVELS).is_file():
        return folder
    raise DataError(
        f"{folder} holds neither Penn Treebank (ptb.train.txt, ptb.valid.txt, ptb.test.txt) nor other text (train.txt, "
        "valid.txt, test.txt)"
    )


def load(folder: Path, most_words: int = 10_000) -> Corpus:
    """Reads a folder that `locate` gave. Of the training text's words, the `most_words` most frequent are known.

    Raises
    ------
    DataError
        A file is damaged or empty, or of Penn Treebank and has another checksum. Names it.
    """
    if (folder / "ptb.train.txt").is_file():
        name, texts = "Penn Treebank", {part: _lines(folder / f"ptb.{part}.txt", PTB_MD5[part]) for part in PARTS}
    elif (folder / "train.txt").is_file():
        name, texts = "text", {part: _lines(folder / f"{part}.txt") for part in PARTS}
    else:
        name, texts = "six novels of Jane Austen", _novels(folder)
    counts = Counter(texts["train"])
    words = [END, UNKNOWN]
    # Words that occur equally often in the order of the alphabet: the same numbers on every machine.
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    words += [word for word in frequent if word not in words][: max(0, most_words - len(words))]
    numbers = {word: number for number, word in enumerate(words)}
    parts = {part: torch.tensor([numbers.get(word, numbers[UNKNOWN]) for word in text]) for part, text in texts.items()}
    return Corpus(name, folder, words, parts)


def _lines(file: Path, md5: str | None = None) -> list[str]:
    """Words of a file that is tokenised already; a line's end is a word as well."""
    content = file.read_bytes()
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{file} has another MD5 than {md5}: it is damaged, or not Mikolov's Penn Treebank")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8 ({error})") from error
    words = [word for line in text.splitlines() for word in [*line.split(), END]]
    if len(words) < 2:
        raise DataError(f"{file} is empty")
    return words


# ---- the novels -----------------------------------------------------------------------------------------------------


def books(folder: Path) -> list[list[str]]:
    """The lines of each novel, from a folder that `locate` gave. Raises `DataError`."""
    file = folder / NOVELS
    try:
        found = list(_vectors(file.read_bytes()))
    except (OSError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{file} is damaged ({error}): delete its folder and try again") from error
    if len(found) != BOOKS:
        raise DataError(f"{file} has {len(found)} books, not {BOOKS}: delete its folder and try again")
    return found


def _novels(folder: Path) -> dict[str, list[str]]:
    """Each book's end is held out, so that all parts are of the same kind."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for lines in books(folder):
        words = _tokens(lines)
        held_out = int(HELD_OUT * len(words))
        parts["train"] += words[: -2 * held_out]
        parts["valid"] += words[-2 * held_out : -held_out]
        parts["test"] += words[-held_out:]
    return parts


def _tokens(lines: list[str]) -> list[str]:
    """Words in small letters, without punctuation, as in Penn Treebank; the end of a sentence is a word."""
    text = re.sub(r"\b(mr|mrs|dr|st)\.", r"\1", " ".join(lines).lower())
    found = re.findall(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[.!?]+", text)
    return [END if word[0] in ".!?" else "N" if word.isdigit() else word for word in found]


def _vectors(content: bytes) -> Iterator[list[str]]:
    """The character vectors of a package's lazy-load database: each its length, then zlib's stream of R's serialisation."""
    place = 0
    while place < len(content):
        stream = zlib.decompressobj()
        vector = stream.decompress(content[place + 4 :])
        if not stream.eof:
            raise ValueError("it ends too early")
        yield _strings(vector)
        place = len(content) - len(stream.unused_data)


def _strings(data: bytes) -> list[str]:
    """R's serialisation of a character vector, in XDR: "R Internals", section 1.8."""
    version = struct.unpack_from(">i", data, 2)[0]  # then two versions of R, and from 3 on the encoding's name
    place = 14 if version < 3 else 18 + struct.unpack_from(">i", data, 14)[0]
    kind, count = struct.unpack_from(">ii", data, place)
    if data[:2] != b"X\n" or kind & 0xFF != 16:
        raise ValueError("no character vector")
    place, strings = place + 8, []
    for _ in range(count):
        length = max(0, struct.unpack_from(">i", data, place + 4)[0])  # -1: not available
        strings.append(data[place + 8 : place + 8 + length].decode())
        place += 8 + length
    return strings
