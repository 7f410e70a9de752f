"""Where a data set's images and clips are: a folder, an archive, or several archives for different beginnings of names.

The mix of 665K instructions, for one, names images of five collections, four of which are published as archives:

    archives:
      coco: coco/train2017.zip               # the name coco/train2017/1.jpg is its member train2017/1.jpg
      vg: [vg/images.zip, vg/images2.zip]    # vg/VG_100K/1.jpg is in one of the two
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from voco_llama.data.media.archives import Archive, ArchiveMember, is_archive_name, member_name
from voco_llama.data.media.stored import MediaFile
from voco_llama.data.media.video import choose_clips, list_clips
from voco_llama.errors import DataError, ProblemKind, SettingsError, one_line, shown


def resolve_inside(root: str | os.PathLike[str], name: str, source: str = "") -> Path:
    """Joins a name from a data file to its media folder and makes sure that it stays there, if it exists or not.

    Args:
        root: The media folder.
        name: The path as the data file has it, relative to `root`.
        source: Where the name stands (a record), put before an error's text.

    Raises:
        DataError: `name` is empty, absolute, has a `..` in it, or leads out of `root` through a symbolic link.
    """
    if not name:
        raise _refused(source, f"the file name is empty; name a file inside {root}, or leave the entry out")
    path, name_shown = Path(root, name), repr(name) if len(name) <= 200 else f"{name[:200]!r}..."
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise _refused(source, f"{name_shown} leaves the folder {root}; name a file inside it by a relative path")
    try:
        inside = path.resolve().is_relative_to(Path(root).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise _refused(source, f"{name_shown} is no usable file name: {one_line(error)}") from error
    if not inside:
        raise _refused(
            source,
            f"{name_shown} leaves the folder {root} through a symbolic link; put the files inside it, or name the"
            " folder that they really are in",
        )
    return path


def _refused(source: str, what: str, kind: ProblemKind = ProblemKind.BAD_FILE_NAME) -> DataError:
    return DataError(f"{source}: {what}" if source else what, kind)


class MediaRoot:
    """What the file names of a data set are relative to; picklable, holds no open file.

    Args:
        folder: Of names that no prefix begins; None where there is none.
        archives: Prefix (ends in `/`; empty = all other names) -> where members lie whose names go on after it.
    """

    def __init__(self, folder: Path | None, archives: Mapping[str, tuple[Archive, ...]] | None = None) -> None:
        self.folder = folder
        self.archives = dict(archives or {})
        self._prefixes = sorted(self.archives, key=len, reverse=True)

    def __str__(self) -> str:
        places = [] if self.folder is None else [str(self.folder)]
        places += [str(archive.path) for archives in self.archives.values() for archive in archives]
        return ", ".join(places)

    def find(self, name: str, source: str = "") -> MediaFile:
        """The file of a name; arguments as those of `resolve_inside`. Whether one in a folder exists is not checked.

        Raises:
            DataError: The name is empty or leads out of the folder or archive, or no archive has it.
        """
        found = self._find(name, source)
        if found is None:
            what = f"no file {shown(name)} in {self}; fetch it, or take the record out"
            raise _refused(source, what, ProblemKind.MISSING_FILE)
        return found

    def find_first(self, names: Iterable[str], source: str = "") -> MediaFile | None:
        """The file of the first name that there is a file of; the rest as `find`."""
        for name in names:
            found = self._find(name, source)
            if found is not None and (isinstance(found, ArchiveMember) or found.is_file()):
                return found
        return None

    def list_clips(self) -> dict[str, str]:
        """Clips' names without folder and ending -> names for `find`; flat in the folder, anywhere in archives."""
        archives = [(prefix, archive) for prefix, several in self.archives.items() for archive in several]
        clips = choose_clips(prefix + name for prefix, archive in archives for name in archive.names())
        return clips if self.folder is None else clips | list_clips(self.folder)

    def _find(self, name: str, source: str) -> MediaFile | None:
        plain = self._member_name(name, source) if self.archives else name
        prefix = next((prefix for prefix in self._prefixes if plain.startswith(prefix)), None)
        if prefix is None:
            return None if self.folder is None else resolve_inside(self.folder, name, source)
        members = (archive.find(plain.removeprefix(prefix)) for archive in self.archives[prefix])
        return next((member for member in members if member is not None), None)

    def _member_name(self, name: str, source: str) -> str:
        if not name:
            raise _refused(source, f"the file name is empty; name a file inside {self}, or leave the entry out")
        plain = member_name(name)
        if plain is None:
            what = f"{shown(name)} leaves {self}; name a file inside it by a relative path, with / in it"
            raise _refused(source, what)
        return plain


def list_archives(archives: Mapping[str, Any], where: str = "archives") -> dict[str, tuple[str, ...]]:
    """The setting `archives` in one form: prefix, with its `/` -> paths.

    Raises:
        SettingsError: A value is neither a path nor a list of paths, or a prefix comes twice.
    """
    listed: dict[str, tuple[str, ...]] = {}
    for key, value in archives.items():
        paths = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
        if not paths or not all(isinstance(path, str) for path in paths):
            raise SettingsError(f"{where}.{key}: {shown(value)} is neither the path of an archive nor a list of them")
        prefix = str(key).strip("/")
        prefix = f"{prefix}/" if prefix else ""
        if prefix in listed:
            raise SettingsError(f"{where}: the beginning {prefix!r} comes twice; give one list of its archives")
        if not all(map(is_archive_name, paths)):
            raise SettingsError(f"{where}.{key}: {shown(value)} names what is no .zip or .tar; give archives")
        listed[prefix] = paths
    return listed


def open_media_root(
    media: str | Path | MediaRoot | None,
    file: Path,
    index_folder: Path | None = None,
    archives: Mapping[str, Any] | None = None,
) -> MediaRoot | None:
    """Opens the folder or archive of a data set's media, with archives for some of its names.

    Args:
        media: A folder, a `.zip` or a `.tar`; what is open already is returned.
        file: The data set's records, for messages.
        index_folder: Where archives' tables are kept; None = nowhere.
        archives: As `SourceSettings.archives`.

    Returns:
        None where there are neither `media` nor `archives`.

    Raises:
        DataError: Something is missing, or is no archive that can be read in place.
        SettingsError: `archives` is not of the form it should be.
    """
    if isinstance(media, MediaRoot) or (media is None and not archives):
        return media
    folder = None if media is None else Path(media)
    listed = list_archives(archives or {})
    if folder is not None and not folder.is_dir():
        if not is_archive_name(folder):
            raise DataError(f"{folder}: no such folder; it should hold the images or clips of {file}")
        if "" in listed:
            raise SettingsError(f"archives: {folder} is for all names without a prefix already; list it there")
        listed[""] = (str(folder),)
        folder = None
    return MediaRoot(
        folder,
        {prefix: tuple(Archive(Path(path), index_folder) for path in paths) for prefix, paths in listed.items()},
    )
