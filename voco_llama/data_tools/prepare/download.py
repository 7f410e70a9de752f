"""Fetching a file of a public set when a user asks for it, from the hub or from the URL in its description.

What comes in lies in a folder `.download` beside its place until its size and checksum were compared; what is cut off
goes on from where it was.
"""

import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from email.message import Message
from http.client import HTTPException
from pathlib import Path

from voco_llama.data_tools.prepare.sets import Part
from voco_llama.data_tools.prepare.unpack import CHUNK_BYTES
from voco_llama.data_tools.prepare.verify import State, verify
from voco_llama.errors import DataError, SettingsError, one_line

logger = logging.getLogger(__name__)

STAGING = ".download"
TIMEOUT_SECONDS = 60
HTTP_PARTIAL = 206
HTTP_RANGE_REFUSED = 416

_UNREACHED = (OSError, HTTPException)


def check_online() -> None:
    """Refuse to download where the hub's library is told to stay offline.

    Raises:
        SettingsError: It is.
    """
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise SettingsError("download=true, but HF_HUB_OFFLINE is set: unset it, or fetch the files by hand")


def download(
    part: Part, target: Path, state: State, retries: int, progress: Callable[[int], None] | None = None
) -> None:
    """Fetch the file of a part to its place, if the part says where from.

    Args:
        part: With `repository` or `url`.
        target: Where it goes; it is there only when it is whole and as published.
        state: Where its checksum is remembered.
        retries: Times that a connection which broke is made again without a byte of progress between.
        progress: Called with the bytes of each chunk that comes from a URL.

    Raises:
        DataError: The source cannot be reached, has not the file, breaks off too often, the disk is full, or the file
            is not as published.
    """
    staging = target.parent / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    _check_disk(part, staging)
    if part.repository:
        staged = _from_hub(part, target.name, staging)
    else:
        staged = _from_url(part.url or "", staging / target.name, retries, progress)
    try:
        verify(staged, part, state)
    except DataError:
        staged.unlink()
        raise
    staged.replace(target)
    state.move(staged, target)
    if not any(staging.rglob("*.incomplete")):  # the hub's library goes on from those
        shutil.rmtree(staging / ".cache", ignore_errors=True)
    with suppress(OSError):  # another file may lie there
        staging.rmdir()


def _check_disk(part: Part, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if part.size is not None and part.size > free:
        raise DataError(f"{folder}: {part.place} needs {part.size} bytes of disk, {free} are free; make room")


def _from_hub(part: Part, name: str, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # of the HTTP library that it uses

    try:
        file = hf_hub_download(part.repository, name, repo_type="dataset", revision=part.revision, local_dir=folder)
    except (HTTPError, EntryNotFoundError, OSError) as error:
        raise DataError(
            f"{part.source}: cannot be fetched ({one_line(error)}); try again, or fetch it by hand"
        ) from error
    return Path(file)


def _from_url(url: str, staged: Path, retries: int, progress: Callable[[int], None] | None) -> Path:
    """Fetch a URL to a file, again and again from where it broke off."""
    part_file = staged.with_name(f"{staged.name}.part")
    left = retries
    while True:
        before = _size(part_file)
        try:
            if _fetch(url, part_file, progress):
                _tag_file(part_file).unlink(missing_ok=True)
                return part_file.replace(staged)
            problem = "the connection broke off"
        except urllib.error.HTTPError as error:
            raise DataError(f"{url}: the server says {error.code} {error.reason}; fetch it by hand") from error
        except _UNREACHED as error:
            problem = one_line(error)
        after = _size(part_file)
        left = retries if after > before else left - 1
        if left < 0:
            raise DataError(
                f"{url}: cannot be fetched ({problem}); {after} bytes are kept, and the same command goes on from there"
            )
        logger.warning("%s: %s after %d bytes, trying again", url, problem, after)
        time.sleep(retries - left)


def _fetch(url: str, file: Path, progress: Callable[[int], None] | None) -> bool:
    """Fetch what is missing of a file; False if the connection ended before the file did."""
    tag_file = _tag_file(file)
    have = _size(file)
    headers = {}
    if have and tag_file.exists():  # without it nobody knows whether the server still has the same file
        headers = {"Range": f"bytes={have}-", "If-Range": tag_file.read_text(encoding="utf-8")}
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != HTTP_RANGE_REFUSED:
            raise
        if _total(error.headers) == have:
            return True
        file.unlink()
        return False
    with response:
        goes_on = response.status == HTTP_PARTIAL
        if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            file.unlink()
            return False
        if not goes_on:
            _keep_tag(response.headers, tag_file)
        length = response.headers.get("Content-Length")
        expected = _total(response.headers) if goes_on else length and int(length)
        with file.open("ab" if goes_on else "wb") as target:
            while chunk := response.read(CHUNK_BYTES):
                target.write(chunk)
                if progress is not None:
                    progress(len(chunk))
    return expected is None or _size(file) >= expected


def _opener() -> urllib.request.OpenerDirector:
    """Speaks http and https only, also where a server sends it elsewhere."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _tag_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.etag")


def _total(headers: Message) -> int | None:
    """Bytes of the whole file, from `Content-Range: bytes 3-9/10` or `bytes */10`."""
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _keep_tag(headers: Message, file: Path) -> None:
    """Keep what names this version of the server's file; a weak tag does not say that the bytes are the same."""
    tag = headers.get("ETag", "")
    tag = headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    if tag:
        file.write_text(tag, encoding="utf-8")
    else:
        file.unlink(missing_ok=True)
