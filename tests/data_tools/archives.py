"""Small archives, and what lies in a folder."""

import io
import tarfile
import zipfile


def write_zip(file, files, method=zipfile.ZIP_STORED):
    """A zip of pairs of a name, or a `ZipInfo`, and content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", method) as opened:
        for name, content in files:
            opened.writestr(name, content)
    return file


def write_tar(file, files, mode="w"):
    """A tar of pairs of a name, or a `TarInfo`, and content."""
    with tarfile.open(file, mode) as opened:
        for info, content in files:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return file


def contents(folder):
    """Every file in a folder and those below, by its name relative to it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
