"""`data prepare`: what is there of the public sets and what is not, with tiny archives in exactly their layouts."""

import json
import shlex
import zipfile

import pytest
import yaml

from voco_llama import cli
from voco_llama.composition import compose
from voco_llama.data_tools.prepare import prepare
from voco_llama.data_tools.public_sets import SETS_DIR, STATE_FILE
from voco_llama.data_tools.settings import DataPrepareSettings
from voco_llama.errors import DataError, SettingsError
from voco_llama.training.build import open_mixture

RECORDS = json.dumps([{"id": 1}])
ARCHIVES = {
    "coco/train2017.zip": ["train2017/1.jpg", "train2017/2.jpg"],
    "gqa/images.zip": ["images/1.jpg"],
    "textvqa/train_val_images.zip": ["train_images/a.jpg"],
    "vg/images.zip": ["VG_100K/1.jpg"],
    "vg/images2.zip": ["VG_100K_2/2.jpg"],
}
MIX = "LLaVA-Instruct-150K"


@pytest.fixture
def sets(tmp_path):
    """The shipped descriptions, with the sizes of the tiny files in place of the published ones."""
    folder = tmp_path / "sets"
    folder.mkdir()
    for file in SETS_DIR.glob("*.yaml"):
        described = yaml.safe_load(file.read_text())
        for part in described["files"]:
            for key in ("size", "sha256", "md5", "count"):
                if part.pop(key, None) is not None:
                    part["about"] = "tiny"
        (folder / file.name).write_text(yaml.safe_dump(described))
    return folder


@pytest.fixture
def run(tmp_path, sets):
    def run(name, **changes):
        """The report on a set, or all of them."""
        values = {"folder": tmp_path / "data", "hub": tmp_path / "hub", "set": name}
        reports = prepare(DataPrepareSettings(**values | changes), sets)
        return reports if name is None else reports[0]

    return run


def edit(sets, name, number, **changes):
    described = yaml.safe_load((sets / f"{name}.yaml").read_text())
    described["files"][number].update(changes)
    (sets / f"{name}.yaml").write_text(yaml.safe_dump(described))


def states(report):
    return [part.state for part in report.parts]


def write_zip(file, names):
    """A zip whose members hold their own names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, name)


def put_mixture(folder, ocr_vqa=True):
    """The downloads of mix665k at their places."""
    for name, members in ARCHIVES.items():
        write_zip(folder / MIX / "archives" / name, members)
    (folder / MIX / "llava_v1_5_mix665k.json").write_text(RECORDS)
    if ocr_vqa:
        images = folder / MIX / "images/ocr_vqa/images"
        images.mkdir(parents=True)
        (images / "1.jpg").write_bytes(b"GIF89a")


def test_a_set_of_one_archive(run, tmp_path):
    data = tmp_path / "data/LLaVA-Pretrain"
    write_zip(data / "images.zip", ["00000/1.jpg", "00453/2.jpg"])
    (data / "blip_laion_cc_sbu_558k.json").write_text(RECORDS)
    report = run("lcs_558k")
    report.check()
    assert states(report) == ["ready", "ready"]
    assert f"{data}/images.zip (tiny): whole, no exact size or checksum is known" in str(report)
    assert not (data / "images").exists()  # nothing is unpacked
    (data / "images.zip").unlink()
    assert states(run("lcs_558k")) == ["ready", "missing"]
    (data / "images/00000").mkdir(parents=True)
    (data / "images/00000/1.jpg").touch()
    again = run("lcs_558k")
    again.check()
    assert f"1 files in {data}/images (no number is known)" in str(again)


def test_the_mixture(run, tmp_path):
    put_mixture(tmp_path / "data")
    report = run("mix665k")
    report.check()
    assert states(report) == ["ready"] * 7
    assert "GIFs named .jpg" in str(report)


@pytest.mark.parametrize(
    ("name", "image"),
    [("lcs_558k", "00000/1.jpg"), ("cc3m_595k", "GCC_train_000000000.jpg"), ("mix665k", "coco/train2017/1.jpg")],
)
def test_the_settings_that_it_names_read_the_archives(run, tmp_path, name, image):
    put_mixture(tmp_path / "data")
    for folder in ("LLaVA-Pretrain", "LLaVA-CC3M-Pretrain-595K"):
        write_zip(tmp_path / "data" / folder / "images.zip", [image])
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A."}]
    for file in ("LLaVA-Pretrain/blip_laion_cc_sbu_558k", "LLaVA-CC3M-Pretrain-595K/chat", f"{MIX}/llava_v1_5_mix665k"):
        records = [{"id": "1", "image": image, "conversations": turns}]
        (tmp_path / "data" / f"{file}.json").write_text(json.dumps(records))
    line = next(line for line in str(run(name)).splitlines() if "read in place with: " in line)
    settings = compose([*shlex.split(line.partition("with: ")[2]), f"paths.data={tmp_path / 'data'}", "stage=instruct"])
    (file,) = open_mixture(settings)[0].images
    assert file.open().read().decode() == image.removeprefix("coco/")


def test_what_is_missing_is_named_with_its_step(run, tmp_path):
    put_mixture(tmp_path / "data", ocr_vqa=False)
    (tmp_path / "data" / MIX / "archives/gqa/images.zip").unlink()
    report = run("mix665k")
    assert states(report) == ["ready", "ready", "missing", "ready", "ready", "ready", "missing"]
    lines = [line for line in str(report).splitlines() if line.startswith("  missing")]
    place = tmp_path / "data" / MIX
    assert lines == [
        f"  missing  {place}/archives/gqa/images.zip (tiny): run: wget -c -P {place}/archives/gqa"
        " https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip",
        f"  missing  {place}/images/ocr_vqa/images (8.91 GB as one archive): run the download script of "
        "https://drive.google.com/drive/folders/1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_ (many of its links are dead; copies "
        "of the images are named in https://github.com/haotian-liu/LLaVA/issues/1618), and name every image .jpg "
        f"(goes to {place}/images/ocr_vqa/images)",
    ]
    with pytest.raises(DataError, match=r"mix665k is not ready: 2 of its 7 parts are missing or broken"):
        report.check()


def test_downloads_elsewhere_are_verified_and_linked(run, tmp_path):
    downloads = tmp_path / "downloads"
    for name, members in ARCHIVES.items():
        write_zip(downloads / name.replace("/", "_"), members)
    write_zip(downloads / "images.zip", ["anyone.jpg"])
    (downloads / "llava_v1_5_mix665k.json").write_text(RECORDS)
    for _ in range(2):
        report = run("mix665k", archives=downloads)
        assert states(report) == ["ready"] * 6 + ["missing"]
    places = [tmp_path / "data" / MIX / "archives" / name for name in ARCHIVES]
    assert [place.readlink().name for place in places] == [name.replace("/", "_") for name in ARCHIVES]
    run(None, archives=tmp_path / "downloads")
    assert states(run("mix665k")) == states(report)


def test_a_broken_part_does_not_hold_up_the_others(run, tmp_path):
    put_mixture(tmp_path / "data")
    archive = tmp_path / "data" / MIX / "archives/coco/train2017.zip"
    archive.write_bytes(archive.read_bytes()[:-10])
    report = run("mix665k")
    assert states(report) == ["ready", "broken", *["ready"] * 5]
    assert f"{archive}: cannot be read (" in str(report)
    assert "it is damaged or was not fetched to its end; fetch it again" in str(report)
    with pytest.raises(DataError, match="1 of its 7 parts"):
        report.check()


def test_a_checksum_that_differs(run, sets, tmp_path):
    edit(sets, "lcs_558k", 1, sha256="0" * 64)
    write_zip(tmp_path / "data/LLaVA-Pretrain/images.zip", ["00000/1.jpg"])
    assert states(run("lcs_558k")) == ["missing", "broken"]


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/blip_laion_cc_sbu_558k.json").write_text(RECORDS)
    (tmp_path / "data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json").mkdir(parents=True)
    assert states(run("lcs_558k", archives=tmp_path / "downloads"))[0] == "broken"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["VG_100K/1.jpg"], "has nothing for LLaVA-Instruct-150K/images/gqa/images, so it is another archive"),
        (["images/1.jpg", "other/2.jpg"], "has 1 files for LLaVA-Instruct-150K/images/gqa/images, published are 2"),
    ],
)
def test_an_archive_that_lacks_members(run, sets, tmp_path, members, message):
    edit(sets, "mix665k", 2, count=2)
    put_mixture(tmp_path / "data")
    write_zip(tmp_path / "data" / MIX / "archives/gqa/images.zip", members)
    report = run("mix665k")
    assert states(report)[2] == "broken"
    assert message in str(report)


def test_the_list(run, tmp_path):
    put_mixture(tmp_path / "data", ocr_vqa=False)
    (tmp_path / "data/webvid/videos/a").mkdir(parents=True)
    (tmp_path / "data/webvid/videos/a/1.mp4").touch()
    (tmp_path / "data/webvid/captions.csv").write_text("videoid,name\n")
    reports = run(None)
    assert {found.name: found.state for found in reports} == {
        "cc3m_595k": "missing",
        "lcs_558k": "missing",
        "mix665k": "partly",
        "video_instruct_100k": "missing",
        "webvid": "ready",
        "msvd_qa": "missing",
        "msrvtt_qa": "missing",
    }
    text = "".join(map(str, reports))
    assert text.count("archives are read in place with: data=") == 3
    assert "licence: research only; the clips belong to Shutterstock" in text
    assert text.count("licence: ") == len(reports)
    assert not (tmp_path / "data" / STATE_FILE).exists()


def test_a_folder_with_too_few_files_is_not_ready(run, sets, tmp_path):
    edit(sets, "lcs_558k", 1, count=3)
    images = tmp_path / "data/LLaVA-Pretrain/images/00000"
    images.mkdir(parents=True)
    for number in range(2):
        (images / f"{number}.jpg").touch()
    for reports in ([run("lcs_558k")], run(None)):
        found = next(found for found in reports if found.name == "lcs_558k")
        assert found.parts[1].state == "partly"
        assert f"2 of 3 files are in {images.parent}; run: hf download liuhaotian/" in found.parts[1].detail
    (images / "2.jpg").touch()
    assert states(run("lcs_558k"))[1] == "ready"


def test_a_file_of_another_size_in_the_list(run, sets, tmp_path):
    edit(sets, "lcs_558k", 0, size=5)
    (tmp_path / "data/LLaVA-Pretrain").mkdir(parents=True)
    (tmp_path / "data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json").write_text("[")
    found = next(found for found in run(None) if found.name == "lcs_558k")
    assert (found.state, found.parts[0].state, found.parts[0].detail) == (
        "partly",
        "broken",
        "1 bytes, not 5",
    )


def test_mistakes(run, tmp_path):
    with pytest.raises(
        SettingsError,
        match=r"set is 'mix665'; did you mean 'mix665k'\?.*webvid, msvd_qa, msrvtt_qa",
    ):
        run("mix665")
    with pytest.raises(SettingsError, match="no such folder; name the one your downloads are in"):
        run(None, archives=tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="videos has no value: give one, as in 'videos=...'"):
        run("msvd_qa", annotations=tmp_path)


def test_a_folder_that_a_person_fills(run, tmp_path):
    data = tmp_path / "data/VideoInstruct-100K"
    data.mkdir(parents=True)
    (data / "VideoInstruct100K.json").write_text(RECORDS)
    assert states(run("video_instruct_100k")) == ["ready", "missing"]
    (data / "videos").mkdir()
    (data / "videos/v_1.mp4").touch()
    assert states(run("video_instruct_100k")) == ["ready", "ready"]


@pytest.fixture
def clips(tmp_path):
    """Annotations and clips of MSVD-QA, as overrides."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/vid1.mp4").touch()
    asked = [{"id": 0, "video_id": 1, "question": "what?", "answer": "dog"}]
    (tmp_path / "qa.json").write_text(json.dumps(asked))
    return [f"annotations={tmp_path / 'qa.json'}", f"videos={tmp_path / 'clips'}", f"hub={tmp_path / 'hub'}"]


def test_the_command(tmp_path, capsys, clips):
    data = f"paths.data={tmp_path / 'data'}"
    assert cli.main(["data", "prepare", data]) == 0
    assert "cc3m_595k: missing" in capsys.readouterr().out
    assert cli.main(["data", "prepare", data, "set=cc3m_595k"]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("  missing  ") == 2
    assert printed.err.startswith("error: cc3m_595k is not ready: 2 of its 2 parts")
    assert printed.err.count("\n") == 1
    write_zip(tmp_path / "data/LLaVA-CC3M-Pretrain-595K/images.zip", ["GCC_train_000000000.jpg"])
    (tmp_path / "data/LLaVA-CC3M-Pretrain-595K/chat.json").write_text(RECORDS)
    assert cli.main(["data", "prepare", data, "set=cc3m_595k"]) == 0
    assert capsys.readouterr().out.startswith("cc3m_595k: ready\n")
    assert cli.main(["data", "prepare", data, "set=msvd_qa", *clips]) == 0
    assert capsys.readouterr().out.startswith("msvd_qa: ready\n")
    assert (tmp_path / "hub/voco-llama/MSVD-QA/README.md").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("unpack=false", "error: unpack=false: archives are read in place, under the settings that `data prepare set="),
        ("download=true", "error: download=true: nothing is downloaded: run the commands that `data prepare set="),
        ("++retries=3", "error: retries=3: nothing is downloaded"),
    ],
)
def test_settings_that_there_were_say_the_new_way(capsys, override, message):
    assert cli.main(["data", "prepare", "set=mix665k", override]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
