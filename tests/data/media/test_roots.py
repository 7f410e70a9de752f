"""A data set's media are found in a folder, an archive, or archives for beginnings of names."""

import csv
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from voco_llama.data.media.images import load_image
from voco_llama.data.media.roots import MediaRoot, list_archives, open_media_root, resolve_inside
from voco_llama.data.mixture import LoadedMixture, Mixture
from voco_llama.data.readers.caption_csv import CaptionCsv
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.readers.video_chatgpt import VideoChatGpt
from voco_llama.errors import DataError, SettingsError

LAYOUT = {
    "coco/train2017.zip": ["train2017/000000033471.jpg"],
    "gqa/images.zip": ["images/2354786.jpg"],
    "textvqa/train_val_images.zip": ["train_images/a.jpg"],
    "vg/images.zip": ["VG_100K/1.jpg"],
    "vg/images2.zip": ["VG_100K_2/2.jpg"],
}
ARCHIVES = {
    "coco/": "coco/train2017.zip",
    "gqa": "gqa/images.zip",
    "textvqa": "textvqa/train_val_images.zip",
    "vg": ["vg/images.zip", "vg/images2.zip"],
}
NAMES = [
    "coco/train2017/000000033471.jpg",
    "gqa/images/2354786.jpg",
    "ocr_vqa/images/x.jpg",
    "textvqa/train_images/a.jpg",
    "vg/VG_100K/1.jpg",
    "vg/VG_100K_2/2.jpg",
]


def image_of(name: str) -> bytes:
    """A small image that differs from name to name."""
    from io import BytesIO

    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


@pytest.fixture
def sets(tmp_path) -> Path:
    """The collections of mix665k: archives as they are published, OCR-VQA in a folder; and all in one folder."""
    for archive, members in LAYOUT.items():
        prefix = archive.split("/")[0]
        write_zip(tmp_path / archive, {name: image_of(f"{prefix}/{name}") for name in members})
    for folder, names in (("images", ["ocr_vqa/images/x.jpg"]), ("unpacked", NAMES)):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(image_of(name))
    return tmp_path


def in_folder(root: Path, archives: dict) -> dict:
    return {
        prefix: [str(root / path) for path in paths] if isinstance(paths, list) else str(root / paths)
        for prefix, paths in archives.items()
    }


@pytest.fixture
def mixed(sets) -> MediaRoot:
    return open_media_root(sets / "images", sets / "mix.json", archives=in_folder(sets, ARCHIVES))


def write_chat(file: Path, names: list[str]) -> Path:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    file.write_text(json.dumps([{"id": name, "image": name, "conversations": turns} for name in names]))
    return file


def pixels(record) -> list:
    return np.array(load_image(record.images[0])).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mixture_from_archives_equals_the_unpacked_one(sets, mixed, num_workers):
    file = write_chat(sets / "mix.json", NAMES)
    unpacked = Mixture([LlavaJson(file, sets / "unpacked")], shuffle=False)
    archived = LoadedMixture(Mixture([LlavaJson(file, mixed)], shuffle=False), pixels)
    loader = DataLoader(archived, batch_size=None, num_workers=num_workers)
    assert list(loader) == [pixels(record) for record in unpacked]
    assert len({str(row) for row in loader}) == len(NAMES)


def test_spawned_workers_read_archives(sets, mixed):
    reader = LlavaJson(write_chat(sets / "mix.json", NAMES), mixed)
    again = pickle.loads(pickle.dumps(reader))
    assert [pixels(record) for record in again] == [pixels(record) for record in reader]
    assert list(again) == list(reader)


def test_an_archive_in_place_of_the_folder(tmp_path):
    write_zip(tmp_path / "images.zip", {"00453/a.jpg": image_of("a"), "GCC_train_1.jpg": image_of("b")})
    reader = LlavaJson(write_chat(tmp_path / "chat.json", ["00453/a.jpg", "GCC_train_1.jpg"]), tmp_path / "images.zip")
    assert [str(record.images[0]) for record in reader] == [
        f"{tmp_path}/images.zip/00453/a.jpg",
        f"{tmp_path}/images.zip/GCC_train_1.jpg",
    ]
    assert [record.images[0].name for record in reader] == ["a.jpg", "GCC_train_1.jpg"]


def test_the_longest_prefix_wins(tmp_path):
    for name in ("a", "b", "c"):
        write_zip(tmp_path / f"{name}.zip", {"y/1": name.encode(), "1": name.encode()})
    paths = {"x": "a.zip", "x/y": "b.zip", "": "c.zip"}
    root = open_media_root(None, tmp_path / "f", archives=in_folder(tmp_path, paths))
    assert root.find("x/1").open().read() == b"a"
    assert root.find("x/y/1").open().read() == b"b"
    assert root.find("y/1").open().read() == root.find("./1").open().read() == b"c"
    assert root.find_first(["xx/1", "z", "x//y/1", "1"]).open().read() == b"b"
    assert root.find_first(["xx/1", "z"]) is None
    assert open_media_root(root, tmp_path / "f") is root
    assert open_media_root(None, tmp_path / "f") is None


@pytest.mark.parametrize(
    ("name", "expected", "kind"),
    [
        ("coco/train2017/2.jpg", "no file 'coco/train2017/2.jpg' in ", "missing_file"),
        ("coco/../../etc/hostname", "'coco/../../etc/hostname' leaves ", "bad_file_name"),
        ("/etc/hostname", "'/etc/hostname' leaves ", "bad_file_name"),
        ("C:/coco/1.jpg", "'C:/coco/1.jpg' leaves ", "bad_file_name"),
        (
            "coco\\train2017\\000000033471.jpg",
            "name a file inside it by a relative path, with / in it",
            "bad_file_name",
        ),
        ("", "the file name is empty", "bad_file_name"),
    ],
)
def test_bad_names(sets, mixed, name, expected, kind):
    reader = LlavaJson(write_chat(sets / "mix.json", [NAMES[0], name]), mixed)
    assert reader[0].images
    with pytest.raises(DataError) as caught:
        reader[1]
    message = str(caught.value)
    assert message.startswith(f"{reader.file} record 1 (id {name!r}): ")
    assert expected in message
    assert "\n" not in message
    assert caught.value.kind == kind


def test_a_missing_file_in_the_folder_is_found_out_when_it_is_read(sets, mixed):
    record = LlavaJson(write_chat(sets / "mix.json", ["ocr_vqa/images/gone.jpg"]), mixed)[0]
    with pytest.raises(DataError, match=r"gone\.jpg: no such file; fetch it"):
        load_image(record.images[0])


def test_a_name_without_prefix_where_there_is_no_folder(sets):
    root = open_media_root(None, sets / "mix.json", archives=in_folder(sets, ARCHIVES))
    with pytest.raises(DataError, match="no file 'ocr_vqa/images/x.jpg' in .*train2017.zip.*; fetch it"):
        root.find("ocr_vqa/images/x.jpg")


def test_a_bad_member_is_skipped_like_a_bad_file(sets, mixed):
    file = write_chat(sets / "mix.json", ["vg/VG_100K/404.jpg", NAMES[0]])
    mixture = Mixture([LlavaJson(file, mixed)], shuffle=False, skip_bad_records=True)
    assert mixture.try_load(0, pixels) == mixture.try_load(1, pixels)


@pytest.mark.parametrize("folder", ["", "videos/"])
def test_clips_in_archives(tmp_path, folder):
    clips = {"1.mp4": b"one", "both.webm": b"w", "both.mp4": b"m", "notes.txt": b""}
    path = write_zip(tmp_path / "clips.zip", {folder + name: data for name, data in clips.items()})
    (tmp_path / "qa.json").write_text(
        json.dumps([{"q": "What?", "a": "It.", "video_id": name} for name in ("1", "both", "notes")])
    )
    records = VideoChatGpt(tmp_path / "qa.json", path)
    assert records[0].video.open().read() == b"one"
    assert records[1].video.open().read() == b"m"
    with pytest.raises(DataError, match=r"\(video_id 'notes'\): no clip of this name in .*clips.zip \(looked for"):
        records[2]


def test_captions_of_clips_in_archives(tmp_path):
    path = write_zip(tmp_path / "clips.zip", {"p1/1.mp4": b"one", "2.mkv": b"two"})
    with (tmp_path / "captions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["videoid", "page_dir", "name"], [1, "p1", "A"], [2, "p1", "B"], [3, "p1", "C"]])
    records = CaptionCsv(tmp_path / "captions.csv", path)
    assert [records[i].video.open().read() for i in (0, 1)] == [b"one", b"two"]
    with pytest.raises(DataError, match="no clip of this name in .*clips.zip"):
        records[2]


def test_the_setting_in_one_form():
    assert list_archives({"coco": "a.zip", "vg/": ["b.ZIP", "c.tar"], "": "d.zip"}) == {
        "coco/": ("a.zip",),
        "vg/": ("b.ZIP", "c.tar"),
        "": ("d.zip",),
    }


@pytest.mark.parametrize(
    ("archives", "expected"),
    [
        ({"coco": 3}, "archives.coco: 3 is neither the path of an archive nor a list of them"),
        ({"coco": []}, "archives.coco: [] is neither"),
        ({"coco": ["a.zip", None]}, "is neither the path"),
        ({"coco": "folder"}, "archives.coco: 'folder' names what is no .zip or .tar; give archives"),
        ({"coco": "a.zip", "coco/": "b.zip"}, "archives: the beginning 'coco/' comes twice"),
    ],
)
def test_bad_settings(archives, expected):
    with pytest.raises(SettingsError) as caught:
        list_archives(archives)
    assert expected in str(caught.value)


def test_what_cannot_be_opened(tmp_path):
    file = tmp_path / "chat.json"
    (tmp_path / "notes.txt").touch()
    for name in ("nowhere", "notes.txt"):
        with pytest.raises(DataError, match=f"{name}: no such folder; it should hold the images or clips of"):
            open_media_root(tmp_path / name, file)
    with pytest.raises(DataError, match=r"gone\.zip: no such file; fetch the archive, or correct its path"):
        open_media_root(tmp_path / "gone.zip", file)
    write_zip(tmp_path / "a.zip", {"a": b""})
    with pytest.raises(SettingsError, match="is for all names without a prefix already"):
        open_media_root(tmp_path / "a.zip", file, archives={"": str(tmp_path / "a.zip")})


def test_a_folder_that_is_named_like_an_archive(tmp_path):
    (tmp_path / "a.zip").mkdir()
    assert open_media_root(tmp_path / "a.zip", tmp_path / "f").find("x") == tmp_path / "a.zip" / "x"


# ---- names


def test_resolve_inside(tmp_path):
    (tmp_path / "coco").mkdir()
    assert resolve_inside(tmp_path, "coco/a b.jpg") == tmp_path / "coco" / "a b.jpg"
    assert resolve_inside(tmp_path, "./a..b.jpg") == tmp_path / "a..b.jpg"


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.jpg", "coco/../../a.jpg", "coco/../a.jpg"])
def test_paths_that_leave_are_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"f\.json record 3: .* leaves the folder"):
        resolve_inside(tmp_path, name, "f.json record 3")


def test_symbolic_links_that_leave_are_refused(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "here").symlink_to(folder)
    with pytest.raises(DataError, match=r"leaves the folder .* through a symbolic link"):
        resolve_inside(folder, "out/a.jpg")
    with pytest.raises(DataError, match="no usable file name"):
        resolve_inside(folder, "loop/a.jpg")
    assert resolve_inside(folder, "here/a.jpg") == folder / "here" / "a.jpg"


def test_a_linked_media_folder_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert resolve_inside(tmp_path / "link", "a.jpg") == tmp_path / "link" / "a.jpg"


@pytest.mark.parametrize(("name", "text"), [("", "is empty"), ("a\0b", "no usable file name"), ("\ud800", "no usable")])
def test_unusable_names(tmp_path, name, text):
    with pytest.raises(DataError, match=text):
        resolve_inside(tmp_path, name)
