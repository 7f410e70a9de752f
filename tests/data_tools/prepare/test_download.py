"""Downloads: whole and as published or not there at all, and never begun anew where they can go on."""

import hashlib

import pytest

from tests.data_tools.archives import contents, write_zip
from tests.data_tools.server import Server
from voco_llama.data_tools.prepare import download as downloading
from voco_llama.data_tools.prepare.download import STAGING, download
from voco_llama.data_tools.prepare.sets import Part
from voco_llama.data_tools.prepare.verify import State
from voco_llama.errors import DataError


@pytest.fixture
def content(tmp_path):
    file = write_zip(tmp_path / "source.zip", [(f"{number}.jpg", bytes([number]) * 100) for number in range(20)])
    raw = file.read_bytes()
    file.unlink()
    return raw


@pytest.fixture
def server(content):
    server = Server(content)
    yield server
    server.close()


@pytest.fixture
def fetch(server, content, tmp_path, monkeypatch):
    """Downloads the server's file to its place below `tmp_path`."""
    monkeypatch.setattr(downloading.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(downloading, "CHUNK_BYTES", 64)

    def fetch(retries=2, progress=None, **published):
        values = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **published}
        part = Part(place="a/images.zip", url=server.url, unpack="a/images", fills="a/images", **values)
        state = State(tmp_path / "state.json")
        download(part, tmp_path / "a/images.zip", state, retries, progress)
        return state

    return fetch


def test_a_file_comes_whole(fetch, server, content, tmp_path):
    seen = []
    fetch(progress=seen.append)
    assert contents(tmp_path / "a") == {"images.zip": content}
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a/images.zip"]
    assert sum(seen) == len(content)
    assert server.asked == [None]


def test_its_checksum_is_known_afterwards(fetch, content, tmp_path):
    state = fetch()
    assert state.get(tmp_path / "a/images.zip", "sha256") == hashlib.sha256(content).hexdigest()


def test_a_connection_that_breaks_is_made_again(fetch, server, content, tmp_path):
    server.breaks = [1000, 500, 0, 0]
    fetch()
    assert (tmp_path / "a/images.zip").read_bytes() == content
    assert server.asked == [None, *["bytes=1000-"], *["bytes=1500-"] * 3]


def test_too_many_breaks_keep_what_came(fetch, server, content, tmp_path):
    server.breaks = [1000, 0, 0, 0]
    with pytest.raises(
        DataError, match=r"the connection broke off\); 1000 bytes are kept, and the same command goes on"
    ):
        fetch()
    assert not (tmp_path / "a/images.zip").exists()
    server.asked.clear()
    fetch()
    assert (tmp_path / "a/images.zip").read_bytes() == content
    assert server.asked == ["bytes=1000-"]


def test_a_kill_in_the_middle(fetch, server, content, tmp_path):
    def die(size, sizes=[]):  # noqa: B006 - it counts
        sizes.append(size)
        if sum(sizes) >= 640:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(progress=die)
    assert not (tmp_path / "a/images.zip").exists()
    fetch()
    assert (tmp_path / "a/images.zip").read_bytes() == content
    assert server.asked == [None, "bytes=640-"]


def test_a_part_that_was_whole_when_the_kill_came(fetch, server, content, tmp_path):
    staging = tmp_path / "a" / STAGING
    staging.mkdir(parents=True)
    (staging / "images.zip.part").write_bytes(content)
    (staging / "images.zip.part.etag").write_text('"v1"')
    fetch()
    assert (tmp_path / "a/images.zip").read_bytes() == content
    assert server.asked == [f"bytes={len(content)}-"]
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a/images.zip"]


@pytest.mark.parametrize("tag", ['"v2"', None, 'W/"v1"'])
def test_a_file_that_changed_meanwhile_is_begun_anew(tag, fetch, server, content, tmp_path):
    server.content, server.breaks, server.tag = bytes(2000), [1000, 0, 0, 0], '"v1"' if tag == '"v2"' else tag
    with pytest.raises(DataError):
        fetch()
    server.content, server.tag = content, tag
    fetch()
    assert (tmp_path / "a/images.zip").read_bytes() == content


def test_a_server_without_ranges(fetch, server, content, tmp_path):
    server.ranges, server.breaks = False, [1000]
    fetch()
    assert (tmp_path / "a/images.zip").read_bytes() == content


def test_another_checksum_is_refused(fetch, tmp_path):
    with pytest.raises(DataError, match="its sha256 is"):
        fetch(sha256="0" * 64)
    assert contents(tmp_path / "a") == {}


def test_another_size_is_refused(fetch, server, tmp_path):
    server.content = b"<html>please log in</html>"
    with pytest.raises(DataError, match="26 bytes, published are"):
        fetch()
    assert contents(tmp_path / "a") == {}


def test_what_the_server_says(fetch, server):
    server.status = 404
    with pytest.raises(DataError, match="images.zip: the server says 404 Not Found; fetch it by hand"):
        fetch()
    assert len(server.asked) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_kind_of_source_is_not_followed(target, fetch, server, tmp_path):
    server.redirect = target
    with pytest.raises(DataError):
        fetch(size=None, sha256=None)
    assert contents(tmp_path / "a") == {}


def test_no_server(fetch, server, tmp_path):
    server.close()
    with pytest.raises(DataError, match=r"cannot be fetched \(.*refused.*\); 0 bytes are kept"):
        fetch()


def test_a_full_disk(fetch, monkeypatch):
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 5}))
    with pytest.raises(DataError, match="a/images.zip needs .* bytes of disk, 5 are free"):
        fetch()


HUB = Part(place="a/chat.json", repository="owner/name", revision="c0ffee", about="1 kB")


def test_from_the_hub(tmp_path, monkeypatch):
    def fake(repository, name, *, repo_type, revision, local_dir):
        assert (repository, name, repo_type, revision) == ("owner/name", "chat.json", "dataset", "c0ffee")
        (local_dir / ".cache/huggingface").mkdir(parents=True)
        (local_dir / name).write_text("[]")
        return str(local_dir / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake)
    download(HUB, tmp_path / "a/chat.json", State(tmp_path / "state.json"), 1)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["chat.json"]


def test_the_hub_out_of_reach(tmp_path):
    """`tests/conftest.py` sets HF_HUB_OFFLINE."""
    with pytest.raises(DataError, match=r"owner/name/resolve/c0ffee/chat.json: cannot be fetched") as caught:
        download(HUB, tmp_path / "a/chat.json", State(tmp_path / "state.json"), 1)
    assert "\n" not in str(caught.value)
