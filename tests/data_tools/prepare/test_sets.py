"""The shipped descriptions of data sets: whole, and in agreement with the settings that train on them."""

import pytest
import yaml

from voco_llama.composition import compose
from voco_llama.data_tools.prepare.sets import Part, choose, names_elsewhere, read_set, read_sets
from voco_llama.errors import SettingsError

SETS = read_sets()
DATA = {
    "cc3m_595k": ["cc3m_595k"],
    "lcs_558k": ["lcs_558k"],
    "mix665k": ["mix665k"],
    "webvid": ["webvid_captions", "webvid_and_video_chatgpt"],
    "video_instruct_100k": ["video_chatgpt", "webvid_and_video_chatgpt"],
}
"""Set to the choices of `data` that read it."""


def test_what_ships():
    assert set(SETS) == set(DATA)


@pytest.mark.parametrize(("name", "choice"), [(name, choice) for name in DATA for choice in DATA[name]])
def test_the_places_are_those_that_trainings_read(name, choice):
    sources = compose(["stage=instruct", f"data={choice}", "paths.data=there"]).data.sources
    parts = SETS[name].files
    records = {f"there/{part.place}" for part in parts if part.fills is None}
    media = [f"there/{part.fills}" for part in parts if part.fills]
    mine = [source for source in sources if source.file in records]
    assert {source.file for source in mine} == records
    for folder in media:
        assert any(folder == source.media_folder or folder.startswith(f"{source.media_folder}/") for source in mine)


def test_every_download_of_the_mixture_has_its_own_file():
    places = [part.place for data_set in SETS.values() for part in data_set.files if part.place]
    assert len(places) == len(set(places))
    assert sum(place.endswith("/images.zip") for place in places) == 4


def test_ocr_vqa_is_explained():
    (note,) = SETS["mix665k"].notes
    assert "GIFs named .jpg" in note
    assert compose(["stage=instruct", "data=mix665k"]).data.skip_bad_records


def test_names_in_a_folder_of_downloads():
    coco, gqa = SETS["mix665k"].files[1:3]
    assert names_elsewhere(coco, SETS) == [
        "LLaVA-Instruct-150K/archives/coco/train2017.zip",
        "archives/coco/train2017.zip",
        "coco/train2017.zip",
        "coco_train2017.zip",
        "train2017.zip",
    ]
    assert names_elsewhere(gqa, SETS)[-2:] == ["gqa/images.zip", "gqa_images.zip"]  # `images.zip` may be anyone's
    assert names_elsewhere(SETS["mix665k"].files[-1], SETS) == []


def test_sizes_are_shown_as_published():
    shown = [part.shown_size for part in SETS["lcs_558k"].files]
    assert shown == ["181 MB", "27.4 GB"]
    assert Part(place="a", size=42_400_000).shown_size == "42.4 MB"
    assert Part(place="a").shown_size == "size unknown"


def test_an_unknown_set():
    with pytest.raises(SettingsError, match=r"set is 'lcs_558'; did you mean 'lcs_558k'\?: choose one of cc3m_595k, "):
        choose(SETS, "lcs_558")


PART = {"place": "a/b.json", "about": "1 MB", "url": "https://host/b.json"}


def describe(file, **changes):
    part = {key: value for key, value in {**PART, **changes}.items() if value is not None}
    values = {"title": "t", "page": "p", "licence": "l", "files": [part]}
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_description_is_read(tmp_path):
    (part,) = read_set(describe(tmp_path / "a.yaml")).files
    assert (part.place, part.source, part.checksum) == ("a/b.json", "https://host/b.json", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha265": "0" * 64}, "unknown setting"),
        ({"size": "big"}, "could not be converted to Integer"),
        ({"place": "../b.json"}, "no place below"),
        ({"place": "/b.json"}, "no place below"),
        ({"place": None}, "needs fills and manual"),
        ({"place": "a.zip", "unpack": "a"}, "one of unpack and fills"),
        ({"place": "a.zip", "unpack": "a", "fills": "b"}, "not inside the one"),
        ({"url": None}, "neither url nor repository nor manual"),
        ({"url": "file:///etc/passwd"}, r"not http\(s\)"),
        ({"url": None, "repository": "a/b"}, "without the other"),
        ({"about": None}, "neither size nor about"),
        ({"sha256": "0" * 63}, "a sha256 that is none"),
        ({"md5": "x" * 32}, "a md5 that is none"),
    ],
)
def test_a_description_that_is_wrong(changes, message, tmp_path):
    with pytest.raises(SettingsError, match=message) as caught:
        read_set(describe(tmp_path / "a.yaml", **changes))
    assert str(tmp_path / "a.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_that_lacks_something(tmp_path):
    (tmp_path / "a.yaml").write_text("title: t\n")
    with pytest.raises(SettingsError, match=r"a.yaml: .*has no value"):
        read_set(tmp_path / "a.yaml")
