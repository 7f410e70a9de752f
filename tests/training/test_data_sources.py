"""What the settings say of a data set's sources reaches their readers."""

import zipfile

import numpy as np
import pytest

from voco_llama.data import kept_tables
from voco_llama.data.media.archives import ArchiveMember
from voco_llama.data.media.images import load_image
from voco_llama.training.build import open_mixture


@pytest.fixture
def archive(world, tmp_path):
    """The images of the questions, in a zip."""
    images = world / "instruct" / "images"
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as opened:
        for image in sorted(images.rglob("*")):
            if image.is_file():
                opened.write(image, image.relative_to(images))
    return tmp_path / "images.zip"


def source_of(world, **keys) -> str:
    values = {"format": "llava_json", "file": world / "instruct" / "train.json"} | keys
    return f"data.sources=[{{{', '.join(f'{key}: {value}' for key, value in values.items())}}}]"


@pytest.mark.parametrize("as_prefix", [False, True])
def test_media_from_an_archive_are_those_of_the_folder(settings_for, world, archive, as_prefix):
    there = open_mixture(settings_for("toy/instruct"))
    settings = settings_for("toy/instruct", source_of(world, **({} if as_prefix else {"media_folder": archive})))
    if as_prefix:
        settings.data.sources[0].archives = {"": str(archive)}
    here = open_mixture(settings)
    assert here.order_fingerprint == there.order_fingerprint
    seen = 0
    for record, expected in zip(here, there, strict=True):
        assert record.turns == expected.turns
        for image, other in zip(record.images, expected.images, strict=True):
            assert isinstance(image, ArchiveMember)
            np.testing.assert_array_equal(np.array(load_image(image)), np.array(load_image(other)))
            seen += 1
    assert seen > 10


def test_the_index_folder_holds_records_and_archives(settings_for, world, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_tables, "SMALLEST_KEPT", 0)
    overrides = (source_of(world, media_folder=archive), f"data.index_folder={tmp_path / 'index'}")
    open_mixture(settings_for("toy/instruct", *overrides))
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "index").iterdir() if path.is_dir()) == [
        "images.zip",
        "train.json",
    ]


def test_the_index_lies_among_the_runs_by_default(settings_for):
    assert settings_for("toy/instruct", "paths.runs=somewhere").data.index_folder == "somewhere/index"
