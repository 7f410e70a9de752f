"""Members of zip and tar files are what was put in, and archives that are not whole are refused."""

import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voco_llama.data import kept_tables
from voco_llama.data.media import archives
from voco_llama.data.media.archives import Archive, member_name
from voco_llama.data.media.images import load_image
from voco_llama.errors import DataError

FILES = {
    "00000/a.jpg": b"a" * 1000,
    "00000/b b.jpg": bytes(range(256)) * 20,
    "é日.jpg": b"letters",
    "empty.jpg": b"",
}


def write_zip(path: Path, files=FILES, compression=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        opened.mkdir("00000")
        for name, data in files.items():
            opened.writestr(name, data)
    return path


def write_tar(path: Path, files=FILES, format=tarfile.PAX_FORMAT, mode="w") -> Path:
    with tarfile.open(path, mode, format=format) as opened:
        folder = tarfile.TarInfo("00000")
        folder.type = tarfile.DIRTYPE
        opened.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return path


WRITERS = {
    "deflated.zip": write_zip,
    "stored.zip": lambda path, files=FILES: write_zip(path, files, zipfile.ZIP_STORED),
    "pax.tar": write_tar,
    "gnu.tar": lambda path, files=FILES: write_tar(path, files, tarfile.GNU_FORMAT),
}


def opening_error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        Archive(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def reading_error(member) -> str:
    with pytest.raises(DataError) as caught:
        member.open()
    message = str(caught.value)
    assert message.startswith(f"{member}: ")
    assert "\n" not in message
    return message


# ---- whole archives


@pytest.mark.parametrize("name", WRITERS)
def test_members_are_what_was_put_in(tmp_path, name):
    archive = Archive(WRITERS[name](tmp_path / name))
    assert sorted(archive.names()) == sorted(FILES)
    for member_name_, data in FILES.items():
        member = archive.find(member_name_)
        assert str(member) == f"{tmp_path / name}/{member_name_}"
        assert member.name == Path(member_name_).name
        assert member.num_bytes == len(data)
        for copy in (member, pickle.loads(pickle.dumps(member))):
            with copy.open() as stream:
                assert stream.read() == data
                stream.seek(0)
                assert stream.read(3) == data[:3]
        assert hash(member) == hash(archive.find(member_name_))
        assert member == archive.find(member_name_)
    for other in ("00000", "00000/", "a.jpg", "00000/A.jpg", "", "00000/a.jpg "):
        assert archive.find(other) is None


@pytest.mark.parametrize("name", WRITERS)
def test_of_many_members_each_is_found(tmp_path, name):
    names = [f"{random.Random(i).getrandbits(64):x}/{i}.jpg" for i in range(500)]
    archive = Archive(WRITERS[name](tmp_path / name, {key: key.encode() for key in names}))
    assert len(archive) == 500
    assert all(archive.find(key).open().read() == key.encode() for key in names)


def test_names_of_the_same_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_hash", lambda name: np.uint64(2**63 + len(name)))
    archive = Archive(write_zip(tmp_path / "a.zip", {name: name.encode() for name in ("aa", "b", "c", "dd", "e")}))
    for name in ("aa", "b", "c", "dd", "e"):
        assert archive.find(name).open().read() == name.encode()
    assert archive.find("f") is archive.find("fff") is archive.find("") is None


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_twice_the_last(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        for number in range(100):
            opened.writestr("a.jpg", f"{number}")
            opened.writestr(f"{number}.jpg", "")
    assert Archive(tmp_path / "a.zip").find("a.jpg").open().read() == b"99"


def test_images_are_read_as_from_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in WRITERS:
        archive = Archive(WRITERS[name](tmp_path / name, {"a.png": (tmp_path / "a.png").read_bytes()}))
        np.testing.assert_array_equal(np.array(load_image(archive.find("a.png"))), pixels)


def test_a_zip_behind_other_bytes(tmp_path):
    data = write_zip(tmp_path / "a.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(b"something before it" + data)
    assert Archive(tmp_path / "b.zip").find("00000/a.jpg").open().read() == FILES["00000/a.jpg"]


def test_a_local_header_with_another_extra_field(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened, opened.open("a.jpg", "w", force_zip64=True) as member:
        member.write(b"data")
    assert Archive(tmp_path / "a.zip").find("a.jpg").open().read() == b"data"


@pytest.mark.parametrize("name", WRITERS)
def test_the_table_is_kept_and_shared(tmp_path, monkeypatch, name):
    monkeypatch.setattr(kept_tables, "SMALLEST_KEPT", 0)
    WRITERS[name](tmp_path / name)
    first = Archive(tmp_path / name, tmp_path / "index")
    monkeypatch.setattr(archives, "_read_members", lambda path: pytest.fail("read again"))
    again = Archive(tmp_path / name, tmp_path / "index")
    for archive in (first, again, pickle.loads(pickle.dumps(again))):
        assert isinstance(archive._table["names"], np.memmap)
        assert {key: archive.find(key).open().read() for key in FILES} == FILES
    assert len(pickle.dumps(again)) < 1000


# ---- names and links


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("a/..b", "a/..b"),
        ("a/../b", None),
        ("../b", None),
        ("..", None),
        ("/a", None),
        ("C:/a", None),
        ("a\\b", None),
        ("..\\b", None),
        ("", None),
        (".", None),
    ],
)
def test_member_names(name, expected):
    assert member_name(name) == expected


@pytest.mark.parametrize("name", WRITERS)
def test_names_that_lead_out_are_not_there(tmp_path, name):
    outside = {"../a": b"1", "/b": b"2", "C:/c": b"3", "x\\d": b"4", "./e/./f": b"5"}
    archive = Archive(WRITERS[name](tmp_path / name, outside))
    assert list(archive.names()) == ["e/f"]


def test_links_and_devices_are_not_there(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        opened.addfile(tarfile.TarInfo("real"), io.BytesIO())
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"kind {kind.decode()}")
            info.type, info.linkname = kind, "/etc/hostname"
            opened.addfile(info)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("real", "")
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        opened.writestr(link, "/etc/hostname")
    for name in ("a.tar", "a.zip"):
        assert list(Archive(tmp_path / name).names()) == ["real"]


# ---- archives that are not whole


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_a_half_fetched_archive(tmp_path, name, share):
    files = {f"{i}.jpg": random.Random(i).randbytes(700) for i in range(40)}
    path = WRITERS[name](tmp_path / name, files)
    size = path.stat().st_size
    if name.endswith("tar"):  # from here on it is padding
        size = 512 + 40 * (512 + 1024)
    os.truncate(path, int(size * share))
    assert "fetch it again" in opening_error(path)


@pytest.mark.parametrize("cut", [0, 512, 1024 + 512, 2 * 1536])
def test_a_tar_cut_at_a_block(tmp_path, cut):
    path = write_tar(tmp_path / "a.tar", {f"{i}": bytes(700) for i in range(3)})
    os.truncate(path, 512 + 3 * 1536 - cut)
    assert "fetch it again" in opening_error(path)


def test_a_tar_with_a_damaged_header_in_it(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}": bytes(700) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[512 + 1536 + 10] ^= 1
    path.write_bytes(data)
    assert f"damaged or cut short at byte {512 + 1536}; fetch it again" in opening_error(path)


def test_what_is_no_archive(tmp_path):
    for name in ("a.zip", "a.tar"):
        (tmp_path / name).write_bytes(b"<html>" * 1000)
        assert "it is damaged or was not fetched to its end; fetch it again" in opening_error(tmp_path / name)
    assert "no such file" in opening_error(tmp_path / "none.zip")
    for name in ("a.tar.gz", "a.TGZ", "a.tar.zst"):
        (tmp_path / name).touch()
        assert "a compressed tar cannot be read in place; unpack it" in opening_error(tmp_path / name)
    assert "holds no files" in opening_error(write_zip(tmp_path / "b.zip", {}))
    assert "holds no files" in opening_error(write_tar(tmp_path / "b.tar", {}))


def test_a_compressed_tar_under_another_name(tmp_path):
    assert "cannot be read (" in opening_error(write_tar(tmp_path / "a.tar", mode="w:gz"))


def test_a_tar_with_a_member_of_negative_size(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0": b"", "1": b""})
    data = bytearray(path.read_bytes())
    header = tarfile.TarInfo("0")
    header.size = -512
    data[512:1024] = header.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)
    assert "damaged or cut short" in opening_error(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(tmp_path, method):
    message = opening_error(write_zip(tmp_path / "a.zip", compression=method))
    assert f"compressed by method {method}; only stored and deflated ones are read in place" in message


def test_encryption_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": b"data"})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the flags in the central directory
    path.write_bytes(data)
    assert "'a.jpg' in it is encrypted; unpack the archive" in opening_error(path)


# ---- members that are damaged, or bombs


@pytest.mark.parametrize("name", ["deflated.zip", "stored.zip"])
def test_a_flipped_bit(tmp_path, name):
    path = WRITERS[name](tmp_path / name, {"a.jpg": random.Random(0).randbytes(3000)})
    member = Archive(path).find("a.jpg")
    data = bytearray(path.read_bytes())
    data[data.index(b"a.jpg") + 1000] ^= 1
    path.write_bytes(data)
    assert "fetch the archive again" in reading_error(member)


def central(path: Path, offset: int, value: int) -> None:
    """Overwrites four bytes in the last entry of a zip's central directory."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + offset, value)
    path.write_bytes(data)


CRC, STORED, UNPACKED = 16, 20, 24


def test_a_member_that_lies_behind_the_end(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(100)})
    central(path, STORED, path.stat().st_size + 1)
    assert "damaged or cut short, members lie outside of it; fetch it again" in opening_error(path)


def test_a_bomb_that_lies_about_its_size(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(10**7)})
    central(path, UNPACKED, 1000)
    central(path, CRC, zlib.crc32(bytes(1000)))
    asked = []
    original = zlib.decompressobj

    class Watched:
        def __init__(self, *args) -> None:
            self.inner = original(*args)

        def decompress(self, data, most):
            asked.append(most)
            return self.inner.decompress(data, most)

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    assert "damaged, it is not what the archive's own table says" in reading_error(Archive(path).find("a.jpg"))
    assert asked == [1001]


def test_a_bomb_that_says_that_it_is_empty(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(10**6)})
    central(path, UNPACKED, 0)
    central(path, CRC, 0)
    assert "damaged" in reading_error(Archive(path).find("a.jpg"))


@pytest.mark.parametrize("name", WRITERS)
def test_members_above_the_limit_are_not_read(tmp_path, monkeypatch, name):
    archive = Archive(WRITERS[name](tmp_path / name, {"a.jpg": bytes(1000), "b.jpg": bytes(1001)}))
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1000)
    assert archive.find("a.jpg").open().read() == bytes(1000)
    assert "takes 1001 bytes, and at most 1000 are read" in reading_error(archive.find("b.jpg"))


@pytest.mark.parametrize("name", WRITERS)
def test_an_archive_that_is_gone_or_another(tmp_path, name):
    path = WRITERS[name](tmp_path / name, {"a.jpg": b"data" * 100})
    member = Archive(path).find("a.jpg")
    os.truncate(path, 20)
    assert "archive again" in reading_error(member)
    path.write_bytes(bytes(2000))
    if name.endswith("zip"):
        assert "is not where it was" in reading_error(member)
    path.unlink()
    assert "cannot be read" in reading_error(member)
