"""Archives of strangers: what comes out lies inside the folder and is whole; everything else is refused in one line."""

import io
import stat
import struct
import tarfile
import zipfile

import pytest

from tests.data_tools.archives import contents, write_tar, write_zip
from voco_llama.data_tools.prepare import members
from voco_llama.data_tools.prepare import unpack as unpacking
from voco_llama.data_tools.prepare.members import HARMLESS_BYTES, TEMPORARY, Member, UnpackLimits, check_structure
from voco_llama.data_tools.prepare.unpack import Unpacked, unpack
from voco_llama.errors import DataError

LIMITS = UnpackLimits(members=100, ratio=100)
FILES = {"train2017/1.jpg": b"one", "train2017/2.jpg": b"two two", "train2017/deep/3.jpg": b""}


@pytest.fixture(params=["a.zip", "deflated.zip", "a.tar", "a.tar.gz", "a.tgz"])
def archive(request, tmp_path):
    file = tmp_path / request.param
    if file.suffix == ".zip":
        method = zipfile.ZIP_DEFLATED if file.stem == "deflated" else zipfile.ZIP_STORED
        return write_zip(file, FILES.items(), method)
    return write_tar(file, FILES.items(), "w" if file.suffix == ".tar" else "w:gz")


def test_what_is_in_comes_out(archive, tmp_path):
    seen = []
    assert unpack(archive, tmp_path / "out", LIMITS, progress=seen.append) == Unpacked(3, 0)
    assert contents(tmp_path / "out") == FILES
    assert seen == [3, 7, 0]


def test_again_writes_nothing(archive, tmp_path):
    unpack(archive, tmp_path / "out", LIMITS)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert unpack(archive, tmp_path / "out", LIMITS) == Unpacked(0, 3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


def test_a_kill_in_the_middle_loses_nothing(archive, tmp_path):
    def die(size):
        if size == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out", LIMITS, progress=die)
    assert contents(tmp_path / "out") == {name: FILES[name] for name in list(FILES)[:2]}
    assert unpack(archive, tmp_path / "out", LIMITS) == Unpacked(1, 2)
    assert contents(tmp_path / "out") == FILES


def test_a_kill_inside_a_member_leaves_no_half_file(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "_put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out", LIMITS)
    assert contents(tmp_path / "out") == {}
    monkeypatch.undo()
    (tmp_path / "out" / TEMPORARY).write_bytes(b"what SIGKILL leaves")
    unpack(archive, tmp_path / "out", LIMITS)
    assert contents(tmp_path / "out") == FILES


def test_a_file_of_another_size_is_written_anew(archive, tmp_path):
    unpack(archive, tmp_path / "out", LIMITS)
    (tmp_path / "out/train2017/2.jpg").write_bytes(b"tw")
    assert unpack(archive, tmp_path / "out", LIMITS) == Unpacked(1, 2)
    assert contents(tmp_path / "out") == FILES


def test_a_zip_notices_other_bytes_of_the_same_size(tmp_path):
    archive = write_zip(tmp_path / "a.zip", FILES.items())
    unpack(archive, tmp_path / "out", LIMITS)
    (tmp_path / "out/train2017/2.jpg").write_bytes(b"owt owt")
    assert unpack(archive, tmp_path / "out", LIMITS, trust_sizes=True) == Unpacked(0, 3)
    assert unpack(archive, tmp_path / "out", LIMITS) == Unpacked(1, 2)
    assert contents(tmp_path / "out") == FILES


def test_permissions_are_not_taken_over(tmp_path):
    info = zipfile.ZipInfo("tool.sh")
    info.external_attr = (stat.S_IFREG | 0o4777) << 16
    unpack(write_zip(tmp_path / "a.zip", [(info, b"#!")]), tmp_path / "zip", LIMITS)
    info = tarfile.TarInfo("tool.sh")
    info.mode = 0o4777
    unpack(write_tar(tmp_path / "a.tar", [(info, b"")]), tmp_path / "tar", LIMITS)
    for folder in ("zip", "tar"):
        assert (tmp_path / folder / "tool.sh").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize("name", ["./a//b/./c.jpg", "a/b/c.jpg"])
def test_names_are_normalised(name, tmp_path):
    unpack(write_tar(tmp_path / "a.tar", [(name, b"x")]), tmp_path / "tar", LIMITS)
    unpack(write_zip(tmp_path / "a.zip", [(name, b"x")]), tmp_path / "zip", LIMITS)
    assert contents(tmp_path / "tar") == contents(tmp_path / "zip") == {"a/b/c.jpg": b"x"}


def test_folders_among_the_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("./", b"")
        opened.writestr("images/", b"")
        opened.writestr("images/1.jpg", b"1")
    folder, root = tarfile.TarInfo("images"), tarfile.TarInfo("./")
    folder.type = root.type = tarfile.DIRTYPE
    write_tar(tmp_path / "a.tar", [(root, b""), (folder, b""), ("images/1.jpg", b"1")])
    for name in ("a.zip", "a.tar"):
        assert unpack(tmp_path / name, tmp_path / f"{name}.out", LIMITS) == Unpacked(1, 0)
        assert contents(tmp_path / f"{name}.out") == {"images/1.jpg": b"1"}


OUTSIDE = [
    "../evil",
    "a/../../evil",
    "a/..",
    "/etc/evil",
    "..\\evil",
    "a\\b",
    "C:/evil",
    "c:evil",
    "a/\nb",
    "x" * 256,
    TEMPORARY,
]


def refuses(archive, folder, message):
    with pytest.raises(DataError, match=message) as caught:
        unpack(archive, folder, LIMITS)
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_the_folder(name, tmp_path):
    good = ("good.jpg", b"good")
    refuses(write_zip(tmp_path / "a.zip", [good, (name, b"evil")]), tmp_path / "zip", "is no path inside")
    assert contents(tmp_path / "zip") == {}  # judged before anything is written
    refuses(write_tar(tmp_path / "a.tar", [good, (name, b"evil")]), tmp_path / "tar", "is no path inside")
    assert contents(tmp_path / "tar") == {"good.jpg": b"good"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip", "tar", "zip"]


def test_a_name_with_a_zero_byte(tmp_path):
    archive = write_zip(tmp_path / "a.zip", [("good.jpgX.exe", b"evil")])
    archive.write_bytes(archive.read_bytes().replace(b"good.jpgX.exe", b"good.jpg\0.exe"))
    refuses(archive, tmp_path / "out", "is no path inside")


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "GNUTYPE_SPARSE"])
def test_links_and_devices_of_a_tar(kind, tmp_path):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = getattr(tarfile, kind), "/etc/passwd"
    refuses(write_tar(tmp_path / "a.tar", [(info, b"")]), tmp_path / "out", "is a link, a device")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_of_a_zip(kind, tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    refuses(write_zip(tmp_path / "a.zip", [(info, b"/etc")]), tmp_path / "out", "is a link or a device")


def test_a_link_that_stands_in_the_folder_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/train2017").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="through a symbolic link"):
        unpack(write_zip(tmp_path / "a.zip", FILES.items()), tmp_path / "out", LIMITS)
    assert contents(tmp_path / "elsewhere") == {}
    (tmp_path / "out/train2017").unlink()
    (tmp_path / "out/train2017").mkdir()
    (tmp_path / "victim").write_bytes(b"one")
    (tmp_path / "out/train2017/2.jpg").symlink_to(tmp_path / "victim")
    unpack(tmp_path / "a.zip", tmp_path / "out", LIMITS)
    assert (tmp_path / "victim").read_bytes() == b"one"
    assert not (tmp_path / "out/train2017/2.jpg").is_symlink()


def test_a_link_as_long_as_a_member_is_not_taken_for_it(tmp_path):
    (tmp_path / "out/train2017").mkdir(parents=True)
    (tmp_path / "out/train2017/2.jpg").symlink_to("x" * len(FILES["train2017/2.jpg"]))
    unpack(write_zip(tmp_path / "a.zip", FILES.items()), tmp_path / "out", LIMITS, trust_sizes=True)
    assert contents(tmp_path / "out") == FILES


def test_a_name_that_comes_twice(tmp_path):
    twice = [("a.jpg", b"1"), ("./a.jpg", b"2")]
    for archive in (write_zip(tmp_path / "a.zip", twice), write_tar(tmp_path / "a.tar", twice)):
        refuses(archive, tmp_path / "out", "'a.jpg' comes twice")


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"]])
def test_a_file_where_a_folder_is(names, tmp_path):
    refuses(write_zip(tmp_path / "a.zip", [(name, b"x") for name in names]), tmp_path / "out", "move it away")


def test_too_many_members(tmp_path):
    many = [(f"{number}.jpg", b"") for number in range(101)]
    for archive in (write_zip(tmp_path / "a.zip", many), write_tar(tmp_path / "a.tar", many)):
        refuses(archive, tmp_path / "out", "more than 100 members; raise max_members")


ZEROS = bytes(HARMLESS_BYTES + 1)


def test_bytes_out_of_proportion(tmp_path):
    for archive in (
        write_zip(tmp_path / "a.zip", [("zeros", ZEROS)], zipfile.ZIP_DEFLATED),
        write_tar(tmp_path / "a.tar.gz", [("zeros", ZEROS)], "w:gz"),
    ):
        refuses(archive, tmp_path / "out", "out of proportion")
        assert contents(tmp_path / "out") == {}


def test_one_member_out_of_proportion_hides_behind_others(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("stored", ZEROS)
        opened.writestr("packed", ZEROS, zipfile.ZIP_DEFLATED)
    refuses(tmp_path / "a.zip", tmp_path / "out", "member 'packed' unpacks to .* out of proportion")


def declare(archive, size):
    """Another unpacked size in the header of the only member and in the list at the end."""
    raw = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", raw, raw.index(mark) + offset, size)
    archive.write_bytes(raw)


@pytest.mark.parametrize("size", [10, 10**6])
def test_a_size_that_lies(size, tmp_path):
    archive = write_zip(tmp_path / "a.zip", [("zeros", bytes(10**5))], zipfile.ZIP_DEFLATED)
    declare(archive, size)
    refuses(archive, tmp_path / "out", "a.zip: (broken|member)")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("content", [b"four", b"2 "])
def test_never_more_than_declared_is_written(content, tmp_path):
    """The archive libraries see to it too; this is for those that do not."""
    member = Member("a", 3, None, lambda: io.BytesIO(content))
    with pytest.raises(DataError, match="has not the 3 bytes that the archive declares"):
        unpacking._write(member, tmp_path / "a", tmp_path / "a.zip")
    assert (tmp_path / "a").stat().st_size <= 3


def test_members_that_overlap(tmp_path):
    """Many members that share the packed bytes of one: each is harmless, their sum is not."""
    archive = write_zip(tmp_path / "a.zip", [("a", bytes(1000))])
    raw = archive.read_bytes()
    start, end = raw.index(b"PK\1\2"), raw.index(b"PK\5\6")
    entry, tail = raw[start:end], bytearray(raw[end:])
    entries = b"".join(entry[:-1] + name for name in (b"a", b"b", b"c"))
    struct.pack_into("<HHI", tail, 8, 3, 3, len(entries))
    archive.write_bytes(raw[:start] + entries + tail)
    refuses(archive, tmp_path / "out", "its members overlap")


def test_a_full_disk_is_seen_before(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(members.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 5}))
    refuses(archive, tmp_path / "out", "needs .* bytes of disk, 5 are free")


def test_a_disk_that_fills_up(archive, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking, "_put", full)
    with pytest.raises(DataError, match=r"out: cannot be written to \(.*No space left"):
        unpack(archive, tmp_path / "out", LIMITS)


def test_an_encrypted_zip(tmp_path):
    archive = write_zip(tmp_path / "a.zip", [("a", b"x")])
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(raw)
    refuses(archive, tmp_path / "out", "is encrypted")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_download_that_was_cut_off(name, tmp_path):
    noise = bytes(range(256)) * 40
    files = [(f"{number}.jpg", noise[number:]) for number in range(20)]
    archive = tmp_path / name
    write_zip(archive, files) if name.endswith("zip") else write_tar(archive, files, "w:gz")
    archive.write_bytes(archive.read_bytes()[:-100])
    refuses(archive, tmp_path / "out", "broken, perhaps a download that was cut off")
    if name.endswith("zip"):
        with pytest.raises(DataError, match="broken, perhaps a download that was cut off"):
            check_structure(archive)


def test_bytes_that_changed(tmp_path):
    archive = write_zip(tmp_path / "a.zip", [("a.jpg", b"the very bytes")])
    archive.write_bytes(archive.read_bytes().replace(b"very", b"same"))
    refuses(archive, tmp_path / "out", "broken.*CRC")
    assert contents(tmp_path / "out") == {}


def test_a_kind_that_is_unknown(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    refuses(tmp_path / "a.rar", tmp_path / "out", "its name should end in .zip, .tar")
