"""The examples' data: found, fetched, read and made into batches."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


pytestmark = pytest.mark.usefixtures("examples_on_path")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no network, and no data set installed in the system."""
    import data

    folder = tmp_path / "cache"
    monkeypatch.setenv("GTOPK_CACHE", str(folder))
    monkeypatch.setattr(data, "CIFAR10_URL", (tmp_path / "nowhere.tar.gz").as_uri())
    monkeypatch.setattr(data, "FASHION_SYSTEM", tmp_path / "nowhere")
    debian_script(tmp_path, monkeypatch, "echo 'no network here' >&2; exit 1")
    return folder


def debian_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Puts `body` in place of scripts/debian_package.sh, which has $1, the package's name, and $2, a folder."""
    import data

    script = tmp_path / "debian_package.sh"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(data, "DEBIAN_SCRIPT", script)


# ---- small data sets in the real formats ----------------------------------------------------------------------------


def cifar10_records(count: int, seed: int) -> np.ndarray:
    records = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records


def write_cifar10(folder: Path, count: int = 20) -> None:
    folder.mkdir(parents=True)
    for i in range(1, 6):
        cifar10_records(count, i).tofile(folder / f"data_batch_{i}.bin")
    cifar10_records(count, 6).tofile(folder / "test_batch.bin")


def write_idx(file: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    file.write_bytes(gzip.compress(head + values.tobytes()))


def write_fashion_mnist(folder: Path, count: int = 30) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(7)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", random.integers(1, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", random.integers(0, 10, count, dtype=np.uint8))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """The official archive in small, with one member that tries to leave the folder; served from a file."""
    import data

    write_cifar10(tmp_path / "official" / "cifar-10-batches-bin")
    file = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(tmp_path / "official" / "cifar-10-batches-bin", "cifar-10-batches-bin")
        member = tarfile.TarInfo("../../escaped")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    monkeypatch.setattr(data, "CIFAR10_URL", file.as_uri())
    monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(file.read_bytes()).hexdigest())
    return file


# ---- locate ---------------------------------------------------------------------------------------------------------


def test_download_fills_the_cache_once_and_completely(archive: Path, cache: Path, tmp_path: Path) -> None:
    import data

    folder = data.locate(progress=False)
    assert folder == cache / "cifar-10-batches-bin"
    assert len(data.load(folder).train) == 100
    assert [entry.name for entry in cache.iterdir()] == [folder.name]
    assert not list(tmp_path.rglob("escaped"))
    archive.unlink()
    assert data.locate(download=False) == folder


def test_wrong_checksum_leaves_nothing(archive: Path, cache: Path) -> None:
    import data

    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(data.DataError, match="MD5"):
        data.locate("cifar10", progress=False)
    assert list(cache.iterdir()) == []


def test_an_archive_without_all_files_leaves_nothing(
    archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data

    with tarfile.open(archive, "w:gz"):
        pass
    monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(data.DataError, match="data_batch_1"):
        data.locate("cifar10", progress=False)
    assert list(cache.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.locate(progress=False)
    assert list(cache.iterdir()) == []


def test_a_download_that_takes_too_long_is_given_up(archive: Path, cache: Path) -> None:
    import data

    with pytest.raises(data.DataError, match="too slow"):
        data.locate("cifar10", progress=False, download_seconds=-1.0)


def test_fashion_mnist_when_cifar10_cannot_be_had(cache: Path) -> None:
    import data

    write_fashion_mnist(cache / "fashion-mnist")
    said: list[str] = []
    assert data.locate(progress=False, say=said.append) == cache / "fashion-mnist"
    assert len(said) == 1 and "CIFAR-10" in said[0] and "Fashion-MNIST" in said[0]


def test_fashion_mnist_from_debians_package(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data

    write_fashion_mnist(tmp_path / "usr" / "share")
    debian_script(tmp_path, monkeypatch, f'test "$1" = dataset-fashion-mnist && cp -r "{tmp_path}/usr" "$2"')
    folder = data.locate(progress=False, say=lambda text: None)
    assert folder == cache / "fashion-mnist"
    assert len(data.load(folder).test) == 30
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


def test_nothing_to_be_had_names_what_was_tried(cache: Path) -> None:
    import data

    with pytest.raises(data.DataError, match=r"CIFAR-10.*Fashion-MNIST.*--data"):
        data.locate(download=False)
    with pytest.raises(data.DataError, match=r"CIFAR-10.*Fashion-MNIST.*package.*no network here.*--data"):
        data.locate(progress=False)


def test_a_given_folder_must_hold_a_data_set(tmp_path: Path, cache: Path) -> None:
    import data

    with pytest.raises(data.DataError, match=r"data_batch_1\.bin"):
        data.locate(str(tmp_path))
    write_cifar10(tmp_path / "cifar-10-batches-bin")
    assert data.locate(str(tmp_path)) == tmp_path / "cifar-10-batches-bin"


# ---- load -----------------------------------------------------------------------------------------------------------


def test_cifar10_is_read_in_order(tmp_path: Path) -> None:
    import data

    write_cifar10(tmp_path / "c")
    images = data.load(tmp_path / "c")
    assert images.name == "CIFAR-10"
    assert images.train.images.shape == (100, 3, 32, 32)
    record = cifar10_records(20, 3)[4]
    assert images.train.labels[2 * 20 + 4] == record[0]
    assert images.train.images[2 * 20 + 4, 1, 5, 9] == record[1 + 1024 + 5 * 32 + 9]
    assert images.test.labels[0] == cifar10_records(20, 6)[0, 0]


def test_the_python_version_is_the_same_data_and_runs_no_code(tmp_path: Path) -> None:
    import data

    write_cifar10(tmp_path / "binary")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (tmp_path / "binary").iterdir():
        records = np.fromfile(file, np.uint8).reshape(-1, 3073)
        batch = {"batch_label": "a", "labels": records[:, 0].tolist(), "data": records[:, 1:]}
        (folder / file.stem).write_bytes(pickle.dumps(batch, protocol=2))
    expected, images = data.load(tmp_path / "binary"), data.load(data.locate(str(tmp_path)))
    for part in ("train", "test"):
        assert torch.equal(getattr(images, part).images, getattr(expected, part).images)
        assert torch.equal(getattr(images, part).labels, getattr(expected, part).labels)

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / "test_batch").write_bytes(pickle.dumps({"labels": Evil()}))
    with pytest.raises(data.DataError, match=r"test_batch.*mkdir"):
        data.load(folder)
    assert not (tmp_path / "ran").exists()


def test_fashion_mnist_is_padded_with_black(tmp_path: Path) -> None:
    import data

    write_fashion_mnist(tmp_path / "f")
    images = data.load(tmp_path / "f").train.images
    assert images.shape == (30, 1, 32, 32)
    inside = images[:, :, 2:30, 2:30]
    assert (inside > 0).all()
    assert images.sum() == inside.sum()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    import data

    write_cifar10(tmp_path / "c")
    (tmp_path / "c" / "data_batch_2.bin").write_bytes(bytes(3072))
    with pytest.raises(data.DataError, match=r"data_batch_2\.bin"):
        data.load(tmp_path / "c")
    np.full(3073, 200, np.uint8).tofile(tmp_path / "c" / "data_batch_2.bin")
    with pytest.raises(data.DataError, match="label 200"):
        data.load(tmp_path / "c")

    write_fashion_mnist(tmp_path / "f")
    file = tmp_path / "f" / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(data.DataError, match="damaged"):
        data.load(tmp_path / "f")
    file.write_bytes(gzip.compress(gzip.decompress(content)[:-1]))
    with pytest.raises(data.DataError, match="no IDX file"):
        data.load(tmp_path / "f")


# ---- batches --------------------------------------------------------------------------------------------------------


def test_ranks_share_an_epoch_without_overlap() -> None:
    from workload import epoch_order

    orders = [epoch_order(103, 2, batch=4, rank=rank, size=3, seed=5) for rank in range(3)]
    assert all(order.shape == (8, 4) for order in orders)
    seen = torch.cat([order.flatten() for order in orders])
    assert len(seen.unique()) == 96 and seen.max() < 103
    again = epoch_order(103, 2, batch=4, rank=1, size=3, seed=5)
    assert torch.equal(again, orders[1])
    assert not torch.equal(epoch_order(103, 3, batch=4, rank=1, size=3, seed=5), orders[1])


def test_augment_shifts_and_mirrors_whole_images() -> None:
    import data

    images = torch.randn(400, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    out = data.augment(images, torch.Generator().manual_seed(2), margin=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    found: set[tuple[int, int, bool]] = set()
    for i in range(len(images)):
        matches = [
            (dy, dx, mirrored)
            for dy in range(5)
            for dx in range(5)
            for mirrored in (False, True)
            if torch.equal(
                out[i].flip(-1) if mirrored else out[i],
                padded[i, :, dy : dy + 6, dx : dx + 6],
            )
        ]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) == 50  # 25 shifts, both ways round
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_normalised_images_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    import data

    for write, name in ((write_cifar10, "c"), (write_fashion_mnist, "f")):
        write(tmp_path / name)
        images = data.load(tmp_path / name)
        x = data.normalise(images.train.images, images.mean, images.std)
        assert x.shape[1:] == (3, 32, 32)
        assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
        assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=1e-3)
