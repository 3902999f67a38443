"""The published workloads: their data, read and refused; the scripts themselves on real data, for a few steps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import launcher
import numpy as np
import pytest
from test_example_data import EXAMPLES

torch = pytest.importorskip("torch")
pytest.importorskip("jiwer")
ROOT = EXAMPLES.parent
AN4 = EXAMPLES / "an4"
# As little as an LSTM can be, and no warm-up.
TINY = ["--hidden", "16", "--layers", "1", "--density", "0.05", "--density-warmup", ""]


pytestmark = pytest.mark.usefixtures("examples_on_path")


def real(locate: Any, *arguments: Any) -> Path:
    """A folder with real data, from the cache or a Debian package. Where that cannot be had: in CI an error, else a skip."""
    from data import DataError

    try:
        return Path(locate(*arguments))
    except DataError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def fashion() -> Path:
    import data

    return real(data.locate, "fashion-mnist")


@pytest.fixture(scope="module")
def novels() -> Path:
    import text

    return real(text.locate, None)


@pytest.fixture(scope="module")
def image_folders(fashion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of Fashion-MNIST's images as files in folders, two classes, of which one has six times the images of the other: a
    model that has learned nothing else has learned that."""
    import data
    from PIL import Image

    images, folder = data.load(fashion), tmp_path_factory.mktemp("images")
    for part, split, most in (("train", images.train, 24), ("val", images.test, 6)):
        for label, count in ((1, most // 6), (8, most)):
            place = folder / part / str(label)
            place.mkdir(parents=True)
            for number in (split.labels == label).nonzero().flatten()[:count].tolist():
                Image.fromarray(split.images[number, 0].numpy()).save(place / f"{number}.png")
    return folder


def train(ranks: int, script: str, *arguments: object, result: Path) -> dict[str, Any]:
    status, output = launcher.mpirun(
        ranks, EXAMPLES / f"{script}.py", *map(str, arguments), "--json", str(result), "--report-every", "1"
    )
    assert status == 0, output
    run: dict[str, Any] = json.loads(result.read_text())
    assert run["replicas_identical"] and run["ranks"] == ranks
    return run


def losses(run: dict[str, Any]) -> list[float]:
    return [line["loss"] for line in run["history"]]


# ---- models ---------------------------------------------------------------------------------------------------------


def test_models_are_the_published_ones() -> None:
    from deepspeech import DeepSpeech
    from lstm import LanguageModel
    from vgg16 import VGG16

    def parameters(model: Any) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert parameters(VGG16()) == 14_728_266 and VGG16()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with torch.device("meta"):
        assert parameters(LanguageModel(10_000)) == 66_034_000
        assert parameters(DeepSpeech(29)) == 27_568_768


def test_what_stands_behind_an_utterance_is_not_heard() -> None:
    from deepspeech import DeepSpeech

    torch.manual_seed(0)
    model = DeepSpeech(29, hidden=8, layers=2).eval()
    spectra = torch.randn(2, 1, 161, 60)
    spectra[1, :, :, 31:] = 0
    whole, lengths = model(spectra, torch.tensor([60, 31]))
    assert whole.shape == (30, 2, 29) and lengths.tolist() == [30, 16]
    alone, _ = model(spectra[1:, :, :, :31], torch.tensor([31]))
    assert torch.allclose(whole[:16, 1], alone[:, 0], atol=1e-5)


# ---- text -----------------------------------------------------------------------------------------------------------


def r_vector(lines: list[str]) -> bytes:
    """A character vector as R serialises it, in a package's database."""
    strings = [struct.pack(">ii", 0x40009, len(line)) + line.encode() for line in lines]
    head = b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8" + struct.pack(">ii", 16, len(lines))
    content = head + b"".join(strings)
    return struct.pack(">i", len(content)) + zlib.compress(content)


def test_novels_are_read_without_r(tmp_path: Path) -> None:
    import text

    book = [*["Mr. Knightley, 21, wasn't there.", ""] * 19, "The end!"]
    (tmp_path / "Rdata.rdb").write_bytes(b"".join(r_vector(book) for _ in range(6)))
    corpus = text.load(text.locate(str(tmp_path)))
    assert corpus.words == ["<eos>", "<unk>", "N", "knightley", "mr", "there", "wasn't"]
    said = [corpus.words[number] for number in corpus.parts["train"][:7].tolist()]
    assert said == ["mr", "knightley", "N", "wasn't", "there", "<eos>", "mr"]
    # A book has 19 x 6 + 3 words, of which a twentieth is held out twice. The last five are of the test.
    assert {part: len(words) for part, words in corpus.parts.items()} == {"train": 6 * 107, "valid": 30, "test": 30}
    assert [corpus.words[number] for number in corpus.parts["test"][2:5].tolist()] == ["<unk>", "<unk>", "<eos>"]


def test_damaged_novels_are_refused(tmp_path: Path) -> None:
    import text
    from data import DataError

    content = b"".join(r_vector([f"book {number}"]) for number in range(6))
    spoiled = bytearray(content)
    spoiled[-3] ^= 1  # in zlib's checksum
    five = b"".join(r_vector([f"book {number}"]) for number in range(5))
    for broken, why in (
        (content[:-9], "too early"),
        (bytes(spoiled), "incorrect data check"),
        (five, "5 books"),
        (b"", "0 b"),
    ):
        (tmp_path / "Rdata.rdb").write_bytes(broken)
        with pytest.raises(DataError, match=rf"Rdata\.rdb.*{why}"):
            text.load(tmp_path)


def test_penn_treebank_has_a_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import text
    from data import DataError

    content = {part: f" one <unk> {part} N \n two \n".encode() for part in text.PARTS}
    for part in text.PARTS:
        (tmp_path / f"ptb.{part}.txt").write_bytes(content[part])
    with pytest.raises(DataError, match=r"ptb\.train\.txt has another MD5"):
        text.load(text.locate(str(tmp_path)))
    digests = {part: hashlib.md5(content[part], usedforsecurity=False).hexdigest() for part in text.PARTS}
    monkeypatch.setattr(text, "PTB_MD5", digests)
    corpus = text.load(text.locate(str(tmp_path)), most_words=4)
    assert corpus.name == "Penn Treebank" and corpus.words == ["<eos>", "<unk>", "N", "one"]
    assert corpus.parts["valid"].tolist() == [3, 1, 1, 2, 0, 1, 0]


def test_other_text_and_none(tmp_path: Path) -> None:
    import text
    from data import DataError

    with pytest.raises(DataError, match=r"neither Penn Treebank.*nor other text"):
        text.locate(str(tmp_path))
    for part in text.PARTS:
        (tmp_path / f"{part}.txt").write_text("a b\n" if part != "test" else "")
    with pytest.raises(DataError, match=r"test\.txt is empty"):
        text.load(text.locate(str(tmp_path)))
    (tmp_path / "test.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"test\.txt is no text"):
        text.load(text.locate(str(tmp_path)))


# ---- speech ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def an4(tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(AN4, tmp_path / "an4"))


def utterance(folder: Path) -> Path:
    return folder / "wav" / "an4_clstk" / "mjes" / "an159-mjes-b.raw"


def test_sound_is_read_in_either_order_of_bytes(an4: Path) -> None:
    import speech

    parts = speech.load(speech.locate(str(an4.parent)))
    assert {part: len(utterances) for part, utterances in parts.items()} == {"train": 12, "test": 4}
    first = parts["train"][0]
    assert first.words == "GO" and np.abs(first.sound.astype(float)).mean() < 1000  # speech, not noise
    for file in an4.rglob("*.raw"):
        file.write_bytes(np.fromfile(file, ">i2").astype("<i2").tobytes())
    again = speech.load(an4)
    assert all(
        np.array_equal(a.sound, b.sound) for part in parts for a, b in zip(parts[part], again[part], strict=True)
    )


def test_an_utterance_that_cannot_be_used_is_named(an4: Path) -> None:
    import speech
    from data import DataError

    file = utterance(an4)
    content = file.read_bytes()
    for broken, why in ((content[:1001], "odd"), (content[:2000], "too short for 'STOP'"), (b"", "too short")):
        file.write_bytes(broken)
        with pytest.raises(DataError, match=rf"an159-mjes-b\.raw.*{why}"):
            speech.load(an4)
    file.unlink()
    with pytest.raises(DataError, match=r"cannot be read.*an159-mjes-b\.raw"):
        speech.load(an4)
    words = an4 / "etc" / "an4_train.transcription"
    words.write_text(words.read_text().replace("<s> STOP </s> (an159-mjes-b)\n", ""))
    with pytest.raises(DataError, match=r"no words in capitals for an159-mjes-b"):
        speech.load(an4)
    words.write_text("STOP\n")
    with pytest.raises(DataError, match=r"the line 'STOP', not WORDS \(NAME\)"):
        speech.load(an4)
    with pytest.raises(DataError, match="neither an archive of AN4 nor a folder"):
        speech.locate(str(an4 / "wav"))


def test_an_archive_is_unpacked_once(an4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import speech
    from data import DataError

    monkeypatch.setenv("GTOPK_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "an4.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(an4, "an4")
        tar.add(an4 / "LICENSE", "an4/etc/../../../escaped.raw")
    with pytest.raises(DataError, match="is not unpacked"):
        speech.locate(str(archive), unpack=False)
    folder = speech.locate(str(archive))
    assert len(speech.load(folder)["train"]) == 12 and speech.locate(str(archive), unpack=False) == folder
    assert not list(tmp_path.rglob("escaped.raw"))

    shutil.rmtree(tmp_path / "cache")
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"cannot be unpacked.*complete"):
        speech.locate(str(archive))
    assert not list((tmp_path / "cache").iterdir())


def test_letters_and_back() -> None:
    import speech

    assert speech.decode(torch.tensor([0, 3, 3, 0, 3, 28, 28, 5, 0])) == "BB D"
    assert speech.decode(speech.encode("GO ON")) == "GO ON"


def test_spectra_are_normalised_and_padded() -> None:
    import speech

    some = sorted(speech.load(AN4)["train"], key=lambda utterance: len(utterance.sound))[::11]
    assert len(some[0].sound) != len(some[1].sound)
    spectra, lengths = speech.spectra(some, torch.device("cpu"))
    assert spectra.shape == (2, 1, 161, int(lengths.max()))
    for one, length in zip(spectra[:, 0], lengths.tolist(), strict=True):
        assert abs(float(one[:, :length].mean())) < 1e-4 and abs(float(one[:, :length].std()) - 1) < 1e-3
        assert not one[:, length:].any()


# ---- the scripts ----------------------------------------------------------------------------------------------------


IMAGES = ["--batch-size", "8", "--test-images", "4", "--density", "0.01", "--momentum-correction"]
FOLDERS = ["--image-size", "64", "--workers", "0", *IMAGES]


@pytest.mark.parametrize(
    ("script", "data", "arguments", "fall"),
    [
        ("cifar_resnet20", "fashion", ["--steps", "20", "--subset", "64", "--lr", "0.01", *IMAGES], 0.85),
        ("cifar_vgg16", "fashion", ["--steps", "10", "--subset", "48", "--lr", "0.002", *IMAGES], 0.9),
        ("imagenet_alexnet", "image_folders", ["--steps", "5", "--lr", "0.05", *FOLDERS], 0.95),
        ("imagenet_resnet50", "image_folders", ["--steps", "6", "--lr", "0.001", *FOLDERS], 0.9),
        (
            "ptb_lstm",
            "novels",
            [
                "--steps",
                "30",
                "--hidden",
                "32",
                "--words",
                "2000",
                "--test-words",
                "2000",
                "--density",
                "0.05",
                "--lr",
                "4",
            ],
            0.9,
        ),
        ("an4_deepspeech", None, ["--steps", "12", *TINY, "--lr", "0.001"], 0.8),
    ],
)
def test_every_workload_learns_from_real_data(
    script: str, data: str | None, arguments: list[str], fall: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    given = ["--data", request.getfixturevalue(data)] if data else []
    schedule = ["--warmup-epochs", 0, "--density-warmup", ""]
    run = train(2, script, *given, *schedule, *arguments, result=tmp_path / "run.json")
    curve = losses(run)
    third = len(curve) // 3
    assert np.mean(curve[-third:]) < fall * np.mean(curve[:third]), curve
    # Each rank has sent its k entries, and no more.
    assert 0 < run["bytes_sent"] < 8 * run["steps"] * run["density"] * run["parameters"]


def deepspeech(*arguments: object, result: Path, ranks: int = 2) -> dict[str, Any]:
    return train(ranks, "an4_deepspeech", *TINY, "--batch-size", 2, *arguments, result=result)


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    file, result = tmp_path / "run.pt", tmp_path / "run.json"
    dense = ["--algorithm", "dense"]
    whole = deepspeech("--steps", 8, *dense, result=result)
    deepspeech("--steps", 5, *dense, "--checkpoint", file, "--save-every", 3, result=result)
    both = deepspeech("--steps", 8, *dense, "--checkpoint", file, "--resume", result=result)
    assert [line["step"] for line in both["history"]] == [*range(1, 9)]
    assert losses(both) == losses(whole)  # bit for bit


def test_it_goes_on_with_more_ranks_curves_and_a_picture(tmp_path: Path) -> None:
    file, result = tmp_path / "run.pt", tmp_path / "run.json"
    deepspeech("--steps", 6, "--checkpoint", file, result=result)
    picture, curves = tmp_path / "run.png", tmp_path / "curves"
    more = ["--checkpoint", file, "--resume", "--plot", picture, "--tensorboard", curves]
    run = deepspeech("--epochs", 4, *more, result=result, ranks=3)
    # 6 steps of 3 an epoch are 2 epochs, which 3 ranks do in 4 steps; so they go on from there to 8.
    assert [line["step"] for line in run["history"]] == [*range(1, 7), *range(5, 9)]
    assert run["history"][-1]["loss"] < run["history"][0]["loss"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert next(curves.iterdir()).stat().st_size > 1000


def refused(*command: object) -> str:
    """Output of ranks that all have to end by themselves, with an error."""
    status, output = launcher.mpirun_of(*command)
    assert status not in (0, 124), output
    return str(output)


def test_a_checkpoint_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    script = ["-n", 2, sys.executable, EXAMPLES / "an4_deepspeech.py", *TINY, "--steps", 1, "--checkpoint", file]
    file.write_bytes(b"PK\x03\x04 and no more")
    output = refused(*script, "--resume")
    assert output.count("run.pt is damaged or no checkpoint") == 1 and "Traceback" not in output
    output = refused(*script)
    assert output.count("run.pt is there already: go on from it with --resume") == 1 and "Traceback" not in output


def test_bad_data_on_one_rank_ends_all(an4: Path) -> None:
    """As on two hosts, of which the second one has an utterance that is cut off."""
    utterance(an4).write_bytes(utterance(an4).read_bytes()[:2000])
    script = [sys.executable, EXAMPLES / "an4_deepspeech.py", *TINY, "--steps", 2, "--data"]
    output = refused("-n", 1, *script, AN4, ":", "-n", 1, *script, an4)
    assert output.count("too short for 'STOP'") == 1 and "rank 1:" in output and "Traceback" not in output


def test_a_damaged_image_ends_all(image_folders: Path, tmp_path: Path) -> None:
    """It is found while the others are in their step."""
    folder = shutil.copytree(image_folders, tmp_path / "images")
    for file in list((folder / "train").rglob("*.png"))[::2]:
        file.write_bytes(file.read_bytes()[:60])
    script = EXAMPLES / "imagenet_alexnet.py"
    output = refused("-n", 2, sys.executable, script, "--data", folder, *FOLDERS, "--batch-size", 2, "--steps", 9)
    assert "cannot be read as an image" in output and ": replace or remove it" in output


def test_a_rank_with_fewer_batches(tmp_path: Path) -> None:
    """Rank 1 has batches of 3 and so fewer of them."""
    script = [sys.executable, EXAMPLES / "an4_deepspeech.py", *TINY, "--epochs", 2, "--data", AN4, "--batch-size"]
    result = tmp_path / "run.json"
    command = ["-n", 1, *script, 2, "--json", result, ":", "-n", 1, *script, 3]
    status, output = launcher.mpirun_of(*command, limit=120)
    assert status == 0, output
    assert "rank 1 has 2 batches an epoch, others up to 3: 2 are used" in output
    run = json.loads(result.read_text())
    assert run["steps"] == 4 and run["replicas_identical"]


def test_too_little_data_is_said(tmp_path: Path) -> None:
    script = EXAMPLES / "an4_deepspeech.py"
    output = refused("-n", 2, sys.executable, script, *TINY, "--data", AN4, "--batch-size", 7)
    assert output.count("too little for 2 ranks with batches of 7") == 1 and "Traceback" not in output


def test_the_published_one_liner(tmp_path: Path) -> None:
    result = tmp_path / "run.json"
    settings = {"dnn": "lstman4", "nworkers": "2", "density": "0.02", "compressor": "topk", "batch_size": "3"}
    settings |= {"lr": "0.001", "max_epochs": "2", "data_dir": str(AN4), "PYTHON": sys.executable}
    more = ["--hidden", "16", "--layers", "1", "--density-warmup", "", "--json", str(result)]
    status, output = launcher.run([str(ROOT / "train.sh"), *more], settings, 120)
    assert status == 0, output
    run = json.loads(result.read_text())
    assert (run["algorithm"], run["density"], run["ranks"], run["batch_size"]) == ("topk", 0.02, 2, 3)
    assert run["steps"] == 4 and run["history"][0]["learning_rate"] == 0.001

    status, output = launcher.run([str(ROOT / "train.sh")], {"dnn": "lenet", "PYTHON": sys.executable}, 60)
    assert status == 2 and "dnn=lenet is none of resnet20, vgg16" in output

    settings = {"launcher": "torchrun", "hostfile": "hosts", "PYTHON": sys.executable}
    status, output = launcher.run([str(ROOT / "train.sh")], settings, 60)
    assert status == 2 and "hostfile=hosts is for mpirun" in output
