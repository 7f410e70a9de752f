"""`data prepare` from downloads to folders: tiny archives in exactly the layouts of the public sets."""

import json

import pytest
import yaml
from filelock import FileLock

from tests.data_tools.archives import contents, write_zip
from tests.data_tools.server import Server
from voco_llama import cli
from voco_llama.data_tools.prepare import prepare as preparing
from voco_llama.data_tools.prepare.members import TEMPORARY
from voco_llama.data_tools.prepare.prepare import LOCK_FILE, DataPrepareSettings, prepare
from voco_llama.data_tools.prepare.sets import SETS_DIR
from voco_llama.data_tools.prepare.verify import STATE_FILE
from voco_llama.errors import DataError, SettingsError

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
        values = {"folder": tmp_path / "data", "hub": tmp_path / "hub", "max_members": 100, "max_ratio": 100}
        return prepare(DataPrepareSettings(**{**values, "retries": 1, "set": name, **changes}), sets)

    return run


def edit(sets, name, number, **changes):
    described = yaml.safe_load((sets / f"{name}.yaml").read_text())
    described["files"][number].update(changes)
    (sets / f"{name}.yaml").write_text(yaml.safe_dump(described))


def states(report):
    (found,) = report.sets
    return [part.state for part in found.parts]


def put_mixture(folder, ocr_vqa=True):
    """The downloads of mix665k at their places."""
    for name, members in ARCHIVES.items():
        write_zip(folder / MIX / "archives" / name, [(member, member.encode()) for member in members])
    (folder / MIX / "llava_v1_5_mix665k.json").write_text(RECORDS)
    if ocr_vqa:
        images = folder / MIX / "images/ocr_vqa/images"
        images.mkdir(parents=True)
        (images / "1.jpg").write_bytes(b"GIF89a")


def test_a_set_of_one_archive(run, tmp_path):
    data = tmp_path / "data/LLaVA-Pretrain"
    write_zip(data / "images.zip", [("00000/1.jpg", b"1"), ("00453/2.jpg", b"2")])
    (data / "blip_laion_cc_sbu_558k.json").write_text(RECORDS)
    report = run("lcs_558k")
    report.check()
    assert states(report) == ["ready", "ready"]
    assert contents(data / "images") == {"00000/1.jpg": b"1", "00453/2.jpg": b"2"}
    assert "2 files unpacked, 0 were there already" in str(report)
    assert "0 files unpacked, 2 were there already" in str(run("lcs_558k"))
    (data / "images.zip").unlink()
    again = run("lcs_558k")
    again.check()
    assert "images (tiny): 2 files (no number is known)" in str(again)


def test_the_mixture(run, tmp_path):
    put_mixture(tmp_path / "data")
    report = run("mix665k")
    report.check()
    assert contents(tmp_path / "data" / MIX / "images") == {
        "coco/train2017/1.jpg": b"train2017/1.jpg",
        "coco/train2017/2.jpg": b"train2017/2.jpg",
        "gqa/images/1.jpg": b"images/1.jpg",
        "textvqa/train_images/a.jpg": b"train_images/a.jpg",
        "vg/VG_100K/1.jpg": b"VG_100K/1.jpg",
        "vg/VG_100K_2/2.jpg": b"VG_100K_2/2.jpg",
        "ocr_vqa/images/1.jpg": b"GIF89a",
    }
    assert "GIFs named .jpg" in str(report)


def test_what_is_missing_is_named_with_its_step(run, tmp_path):
    put_mixture(tmp_path / "data", ocr_vqa=False)
    (tmp_path / "data" / MIX / "archives/gqa/images.zip").unlink()
    report = run("mix665k")
    assert states(report) == ["ready", "ready", "missing", "ready", "ready", "ready", "missing"]
    lines = [line for line in str(report).splitlines() if line.startswith("  missing")]
    place = tmp_path / "data" / MIX
    assert lines == [
        f"  missing  {place}/images/gqa/images (tiny): download https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"
        f" to {place}/archives/gqa/images.zip, or run with download=true",
        f"  missing  {place}/images/ocr_vqa/images (8.91 GB as one archive): run the download script of "
        "https://drive.google.com/drive/folders/1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_ (many of its links are dead; copies "
        "of the images are named in https://github.com/haotian-liu/LLaVA/issues/1618), and name every image .jpg "
        f"(goes to {place}/images/ocr_vqa/images)",
    ]
    with pytest.raises(DataError, match=r"mix665k is not ready: 2 of its 7 parts are missing or broken"):
        report.check()


def test_only_verify(run, tmp_path):
    downloads = tmp_path / "downloads"
    for name, members in ARCHIVES.items():
        write_zip(downloads / name.replace("/", "_"), [(member, b"x") for member in members])
    (downloads / "llava_v1_5_mix665k.json").write_text(RECORDS)
    report = run("mix665k", archives=downloads, unpack=False)
    assert states(report) == ["ready"] * 6 + ["missing"]
    assert f"{downloads}/gqa_images.zip: whole, no exact size or checksum is known" in str(report)
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {LOCK_FILE, STATE_FILE}


def test_downloads_elsewhere_are_unpacked_and_linked(run, tmp_path):
    downloads = tmp_path / "downloads"
    write_zip(downloads / "LLaVA-Pretrain_images.zip", [("00000/1.jpg", b"1")])
    write_zip(downloads / "images.zip", [("anyone.jpg", b"1")])
    (downloads / "blip_laion_cc_sbu_558k.json").write_text(RECORDS)
    for _ in range(2):
        run("lcs_558k", archives=downloads).check()
    data = tmp_path / "data/LLaVA-Pretrain"
    assert contents(data) == {"images/00000/1.jpg": b"1", "blip_laion_cc_sbu_558k.json": RECORDS.encode()}
    assert (data / "blip_laion_cc_sbu_558k.json").is_symlink()


def test_a_broken_part_does_not_hold_up_the_others(run, tmp_path):
    put_mixture(tmp_path / "data")
    archive = tmp_path / "data" / MIX / "archives/coco/train2017.zip"
    archive.write_bytes(archive.read_bytes()[:-10])
    report = run("mix665k")
    assert states(report) == ["ready", "broken", *["ready"] * 5]
    assert f"{archive}: broken, perhaps a download that was cut off" in str(report)
    with pytest.raises(DataError, match="1 of its 7 parts"):
        report.check()


def test_a_checksum_that_differs(run, sets, tmp_path):
    edit(sets, "lcs_558k", 1, sha256="0" * 64)
    write_zip(tmp_path / "data/LLaVA-Pretrain/images.zip", [("00000/1.jpg", b"1")])
    report = run("lcs_558k")
    assert states(report) == ["missing", "broken"]
    assert not (tmp_path / "data/LLaVA-Pretrain/images").exists()


def test_images_that_are_linked_from_elsewhere(run, tmp_path):
    put_mixture(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.jpg").touch()
    link = tmp_path / "data" / MIX / "images/coco/train2017"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    run("mix665k").check()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["1.jpg"]


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(SettingsError, match=r"data: cannot be written to \(.*exists.*\); set paths.data"):
        run("lcs_558k")
    (tmp_path / "data").unlink()
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/blip_laion_cc_sbu_558k.json").write_text(RECORDS)
    (tmp_path / "data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json").mkdir(parents=True)
    assert states(run("lcs_558k", archives=tmp_path / "downloads"))[0] == "broken"


def test_an_archive_of_another_set(run, tmp_path):
    put_mixture(tmp_path / "data")
    write_zip(tmp_path / "data" / MIX / "archives/gqa/images.zip", [("VG_100K/1.jpg", b"")])
    report = run("mix665k")
    assert states(report)[2] == "broken"
    assert "has nothing for" in str(report)


def test_an_archive_that_leaves_the_folder(run, tmp_path):
    put_mixture(tmp_path / "data")
    write_zip(tmp_path / "data" / MIX / "archives/gqa/images.zip", [("images/1.jpg", b""), ("../../evil.jpg", b"")])
    assert states(run("mix665k"))[2] == "broken"
    assert not list(tmp_path.rglob("evil.jpg"))


@pytest.mark.parametrize("limit", [{"max_members": 1}, {"max_ratio": 0.5}])
def test_limits_come_from_the_settings(limit, run, tmp_path, monkeypatch):
    monkeypatch.setattr("voco_llama.data_tools.prepare.members.HARMLESS_BYTES", 0)
    put_mixture(tmp_path / "data")
    write_zip(tmp_path / "data" / MIX / "archives/coco/train2017.zip", [("train2017/1.jpg", bytes(9999))])
    write_zip(tmp_path / "data" / MIX / "archives/gqa/images.zip", [(f"images/{n}.jpg", bytes(9999)) for n in range(2)])
    report = run("mix665k", **limit)
    assert states(report)[2] == "broken"
    assert f"raise {next(iter(limit))}" in str(report)


def test_a_kill_while_unpacking(run, tmp_path, monkeypatch):
    data = tmp_path / "data/LLaVA-CC3M-Pretrain-595K"
    write_zip(data / "images.zip", [(f"GCC_train_{number}.jpg", bytes([number])) for number in range(5)])
    (data / "chat.json").write_text(RECORDS)
    original = preparing.unpack

    def die_after_three(*arguments, progress, **options):
        done = []

        def count(size):
            done.append(size)
            if len(done) == 3:
                raise KeyboardInterrupt

        return original(*arguments, progress=count, **options)

    monkeypatch.setattr(preparing, "unpack", die_after_three)
    with pytest.raises(KeyboardInterrupt):
        run("cc3m_595k")
    monkeypatch.undo()
    listed = next(found for found in run(None).sets if found.name == "cc3m_595k")
    assert (listed.state, listed.parts[1].state) == ("partly", "partly")
    assert "2 files unpacked, 3 were there already" in str(run("cc3m_595k"))


def test_contents_are_compared_until_the_archive_was_wholly_unpacked(run, tmp_path):
    put_mixture(tmp_path / "data")
    run("mix665k")
    image = tmp_path / "data" / MIX / "images/gqa/images/1.jpg"
    image.write_bytes(bytes(image.stat().st_size))
    assert "1 files unpacked" not in str(run("mix665k"))  # sizes alone: quick
    (tmp_path / "data" / STATE_FILE).unlink()
    assert "1 files unpacked" in str(run("mix665k"))
    assert image.read_bytes() == b"images/1.jpg"


def test_what_a_kill_left_is_no_complete_folder(run, tmp_path):
    images = tmp_path / "data/LLaVA-Pretrain/images"
    images.mkdir(parents=True)
    (images / "1.jpg").touch()
    assert states(run("lcs_558k"))[1] == "ready"
    (images / TEMPORARY).touch()
    assert states(run("lcs_558k"))[1] == "partly"


def test_the_list(run, tmp_path):
    put_mixture(tmp_path / "data", ocr_vqa=False)
    (tmp_path / "data/webvid/videos/a").mkdir(parents=True)
    (tmp_path / "data/webvid/videos/a/1.mp4").touch()
    (tmp_path / "data/webvid/captions.csv").write_text("videoid,name\n")
    report = run(None)
    report.check()
    assert {found.name: found.state for found in report.sets} == {
        "cc3m_595k": "missing",
        "lcs_558k": "missing",
        "mix665k": "partly",
        "video_instruct_100k": "missing",
        "webvid": "ready",
        "msvd_qa": "missing",
        "msrvtt_qa": "missing",
    }
    text = str(report)
    assert "train2017.zip is there and not unpacked; set= unpacks it" in text
    assert "licence: research only; the clips belong to Shutterstock" in text
    assert text.count("licence: ") == len(report.sets)
    assert not (tmp_path / "data" / STATE_FILE).exists()


def test_a_folder_with_too_few_files_is_not_ready(run, sets, tmp_path):
    edit(sets, "lcs_558k", 1, count=3)
    images = tmp_path / "data/LLaVA-Pretrain/images/00000"
    images.mkdir(parents=True)
    for number in range(2):
        (images / f"{number}.jpg").touch()
    for name in ("lcs_558k", None):
        found = next(found for found in run(name).sets if found.name == "lcs_558k")
        assert found.parts[1].state == "partly"
        assert "2 of 3 files are there; download https://" in found.parts[1].detail
    (images / "2.jpg").touch()
    assert states(run("lcs_558k"))[1] == "ready"


def test_a_file_of_another_size_in_the_list(run, sets, tmp_path):
    edit(sets, "lcs_558k", 0, size=5)
    (tmp_path / "data/LLaVA-Pretrain").mkdir(parents=True)
    (tmp_path / "data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json").write_text("[")
    found = next(found for found in run(None).sets if found.name == "lcs_558k")
    assert (found.state, found.parts[0].state, found.parts[0].detail) == (
        "partly",
        "broken",
        "1 bytes, published are 5",
    )


def test_a_download_that_was_asked_for(run, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "check_online", lambda: None)
    archive = write_zip(tmp_path / "source.zip", [("train2017/1.jpg", b"1")])
    put_mixture(tmp_path / "data")
    (tmp_path / "data" / MIX / "archives/coco/train2017.zip").unlink()
    server = Server(archive.read_bytes())
    edit(sets, "mix665k", 1, url=server.url)
    assert states(run("mix665k"))[1] == "missing"
    assert server.asked == []
    report = run("mix665k", download=True)
    server.close()
    report.check()
    assert len(server.asked) == 1
    assert (tmp_path / "data" / MIX / "images/coco/train2017/1.jpg").read_bytes() == b"1"


def test_no_download_offline(run):
    with pytest.raises(SettingsError, match="HF_HUB_OFFLINE is set: unset it, or fetch the files by hand"):
        run("lcs_558k", download=True)


def test_one_at_a_time(run, tmp_path):
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / LOCK_FILE), pytest.raises(SettingsError, match="another data prepare is at work"):
        run("lcs_558k")
    run("lcs_558k")


def test_mistakes(run, tmp_path):
    with pytest.raises(SettingsError, match=r"set is 'mix665'; did you mean 'mix665k'\?.*webvid, msvd_qa, msrvtt_qa"):
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
    write_zip(tmp_path / "data/LLaVA-CC3M-Pretrain-595K/images.zip", [("GCC_train_000000000.jpg", b"1")])
    (tmp_path / "data/LLaVA-CC3M-Pretrain-595K/chat.json").write_text(RECORDS)
    assert cli.main(["data", "prepare", data, "set=cc3m_595k"]) == 0
    assert capsys.readouterr().out.startswith("cc3m_595k: ready\n")
    assert cli.main(["data", "prepare", data, "set=msvd_qa", *clips]) == 0
    assert capsys.readouterr().out.startswith("msvd_qa: ready\n")
    assert (tmp_path / "hub/voco-llama/MSVD-QA/README.md").is_file()
