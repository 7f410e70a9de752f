"""About 3,000 files a little wrong and overrides of no sense: each is taken, or refused by one line of ours.

Seeded and bounded; every kind of what else comes out (a type, and where it came from) is listed with its first input.
"""

import dataclasses
import io
import json
import random
import re
import resource
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from tests.rules.commands import Place
from tests.rules.mutations import bytes_of, text_of
from tests.rules.settings import settings_of
from tests.tiny import tiny_model, tiny_processor
from voco_llama import cli
from voco_llama.composition import CONFIG_DIR, compose
from voco_llama.data.media.images import load_image, read_image_header
from voco_llama.data.media.video import count_frames, read_frames
from voco_llama.data.mixture import summarize_bad_records
from voco_llama.data.readers import open_reader
from voco_llama.errors import VoCoError, own_line
from voco_llama.inference import Inference
from voco_llama.model.cache import VoCoCache
from voco_llama.model.weights import read_weights
from voco_llama.report.report import ReportSettings, report
from voco_llama.settings import TrainSettings
from voco_llama.training.checks import check_settings
from voco_llama.training.run_folder import RunFolder
from voco_llama.training.teachers.top_k import TopKRows, read_manifest

pytestmark = pytest.mark.slow

Act = Callable[[], Any]


def fuzz(count: int, draw: Callable[[st.DataObject], tuple[str, Act]]) -> None:
    """Does what is drawn, so many times; fails with a line for each kind of what must not come out."""
    found: dict[str, str] = {}
    ended = {"taken": 0, "refused": 0}
    started = time.perf_counter()

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def run(data: st.DataObject) -> None:
        what, act = draw(data)
        try:
            with warnings.catch_warnings(action="ignore"):
                act()
            ended["taken"] += 1
        except VoCoError as error:
            ended["refused"] += 1
            if "\n" in own_line(error) or not own_line(error):
                found.setdefault(f"several lines: {own_line(error)[:200]!r}", what)
        except Exception as error:
            found.setdefault(kind_of(error), what)

    run()
    seconds = time.perf_counter() - started
    print(f"{sum(ended.values()) + len(found)} tried in {seconds:.1f} s, {ended}")  # noqa: T201
    lines = [f"{kind}\n        from {what}" for kind, what in sorted(found.items())]
    assert not found, f"{len(found)} kinds:\n" + "\n".join(lines)


def kind_of(error: BaseException) -> str:
    """Its type, and where it passed through a file of ours last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = next((f for f in reversed(frames) if "voco_llama" in Path(f.filename).parts), frames[-1])
    text = re.sub(r"\d+|'[^']*'", "..", " ".join(str(error).split()))[:80]
    return f"{type(error).__name__} in {'/'.join(Path(ours.filename).parts[-2:])}:{ours.lineno} {ours.name}: {text}"


def shown(data: bytes) -> str:
    """An input short enough for a line, or its beginning."""
    return repr(data) if len(data) < 400 else f"{data[:200]!r}... ({len(data)} bytes)"


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """A number in a damaged file may ask for any amount of memory: two gigabytes more than now, and no more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# ---- records


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A small file of each format, and what it names."""
    root = tmp_path_factory.mktemp("sources")
    (root / "media").mkdir()
    Image.new("RGB", (8, 8), "red").save(root / "media" / "a.png")
    (root / "media" / "c1.mp4").write_bytes(clip("mp4"))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Red."}]
    records = [{"id": "1", "image": "a.png", "conversations": turns}, {"id": "2", "conversations": turns[:1] * 2}]
    (root / "chat.json").write_text(json.dumps(records), encoding="utf-8")
    (root / "chat.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (root / "clips.json").write_text(json.dumps([{"q": "What?", "a": "Red.", "video_id": "c1"}]), encoding="utf-8")
    (root / "captions.csv").write_text('videoid,page_dir,name\nc1,,"A red, red thing"\nc1,x,"Two\nlines"\n')
    write_parquet(root / "table.parquet", records)
    return root


def clip(form: str) -> bytes:
    """Six frames."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream("libx264" if form == "mp4" else "gif", rate=3)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p" if form == "mp4" else "rgb8"
        for shade in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 40 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_parquet(file: Path, records: list[dict]) -> None:
    import pyarrow as pa

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue(), "path": "a.png"}, None]
    turns = [record["conversations"] for record in records]
    pq.write_table(pa.table({"id": ["1", "2"], "image": images, "conversations": turns}), file)


def read_all(**source: Any) -> None:
    """Every record and what it names; a record that is refused does not hide the next."""
    reader = open_reader(**source)
    assert len(reader.sizes.media) == len(reader)
    refused = None
    for index in range(len(reader)):
        try:
            record = reader[index]
            for image in record.images:
                load_image(image)
            if record.video is not None:
                read_frames(record.video, 2)
        except VoCoError as error:
            refused = error
    if refused is not None:
        raise refused


@pytest.mark.parametrize(
    ("name", "format", "count"),
    [
        ("chat.json", "llava_json", 300),
        ("chat.jsonl", "llava_json", 150),
        ("clips.json", "video_chatgpt", 150),
        ("captions.csv", "caption_csv", 200),
        ("table.parquet", "hf_dataset", 60),
    ],
)
def test_records(name, format, count, sources, tmp_path, arrow_cache):
    whole = (sources / name).read_bytes()
    file = tmp_path / name

    def draw(data):
        changed = data.draw(text_of(whole, name.endswith("l")) if "json" in name else bytes_of(whole))
        file.write_bytes(changed)
        return f"{name} {shown(changed)}", lambda: read_all(format=format, file=file, media_folder=sources / "media")

    fuzz(count, draw)


def test_a_table_read_in_place(sources, tmp_path):
    from voco_llama.data.readers import STREAMS

    whole, file = (sources / "table.parquet").read_bytes(), tmp_path / "table.parquet"

    def read() -> None:
        reader = STREAMS["hf_dataset"](file, sources / "media")
        assert len(reader.sizes.media) == len(reader)
        for index in range(len(reader)):
            for image in reader[index].images:
                load_image(image)

    def draw(data):
        changed = data.draw(bytes_of(whole))
        file.unlink(missing_ok=True)
        file.write_bytes(changed)
        return f"table.parquet {shown(changed)}", read

    fuzz(150, draw)


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_archives(form, sources, tmp_path):
    import shutil

    whole = Path(shutil.make_archive(str(tmp_path / "whole"), form, sources / "media")).read_bytes()
    file = tmp_path / f"media.{form}"

    def draw(data):
        changed = data.draw(bytes_of(whole, 64))
        file.write_bytes(changed)
        source = {"format": "llava_json", "file": sources / "chat.json", "media_folder": file}
        return f"media.{form} {shown(changed)}", lambda: read_all(**source)

    fuzz(80, draw)


# ---- images and clips


def pictures() -> dict[str, bytes]:
    """A small one of each format, with EXIF where the format has it."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    made = {}
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        buffer = io.BytesIO()
        noise.save(buffer, form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        made[form] = buffer.getvalue()
    return made


@pytest.mark.parametrize("form", list(pictures()))
def test_images(form, tmp_path):
    whole, file = pictures()[form], tmp_path / f"a.{form.lower()}"

    def read() -> None:
        image = load_image(file)
        assert image.mode == "RGB"
        tiny_processor().pixels([image])

    def draw(data):
        changed = data.draw(bytes_of(whole, 120))
        file.write_bytes(changed)
        act = (lambda: read_image_header(file)) if data.draw(st.integers(0, 3)) == 0 else read
        return f"{form} {shown(changed)}", act

    fuzz(90, draw)


@pytest.mark.parametrize("form", ["mp4", "gif"])
def test_clips(form, tmp_path):
    whole, file = clip(form), tmp_path / f"a.{form}"

    def draw(data):
        changed = data.draw(bytes_of(whole, 200))
        file.write_bytes(changed)
        act = (lambda: count_frames(file)) if data.draw(st.integers(0, 3)) == 0 else (lambda: read_frames(file, 3))
        return f"{form} {shown(changed)}", act

    fuzz({"mp4": 200, "gif": 30}[form], draw)


# ---- what is saved of a model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Any]:
    """A checkpoint, and its model."""
    folder, processor = tmp_path_factory.mktemp("saved"), tiny_processor()
    model = tiny_model(processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model


def test_a_cache_is_refused_or_what_was_saved(saved, tmp_path):
    _, model = saved
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cache = model.compress(pixels)
    file = tmp_path / "cache.safetensors"
    cache.save(file)
    whole = file.read_bytes()

    def read() -> None:
        loaded = VoCoCache.load(file, model)
        assert torch.equal(loaded.keys, cache.keys), "other keys than were saved"
        assert torch.equal(loaded.values, cache.values), "other values than were saved"

    def draw(data):
        changed = data.draw(bytes_of(whole, 400))
        file.write_bytes(changed)
        return f"cache {shown(changed)}", read

    fuzz(300, draw)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("voco_processor.json", 200),
        ("config.json", 150),
        ("tokenizer_config.json", 80),
        ("tokenizer.json", 80),
        ("model.safetensors", 60),
    ],
)
def test_files_of_a_checkpoint(name, count, saved, tmp_path):
    import shutil

    folder = tmp_path / "checkpoint"
    shutil.copytree(saved[0], folder)
    whole = (folder / name).read_bytes()

    def draw(data):
        changed = data.draw(text_of(whole) if name.endswith("json") else bytes_of(whole, 2000))
        (folder / name).write_bytes(changed)
        return f"{name} {shown(changed)}", lambda: Inference.load(folder, "cpu")

    fuzz(count, draw)


def test_a_projector_of_weights(tmp_path):
    file = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.0.weight": torch.ones(2, 2)}, file)
    whole = file.read_bytes()

    def draw(data):
        changed = data.draw(bytes_of(whole))
        file.write_bytes(changed)
        return f"mm_projector.bin {shown(changed)}", lambda: read_weights(file)

    fuzz(80, draw)


# ---- what is saved of runs


def test_top_k_files(tmp_path):
    folder = tmp_path / "top_k"
    folder.mkdir()
    labels = torch.tensor([-100, 5, 6])
    from voco_llama.training.teachers.top_k import answer_checksum

    count, checksum = answer_checksum(labels)
    tensors = {
        "token_ids": torch.ones(count, 3, dtype=torch.int32), "log_probs": torch.zeros(count, 3),
        "offsets": torch.tensor([0, count]), "checksums": torch.tensor([checksum]),
    }  # fmt: skip
    save_file(tensors, folder / "top_k_00000.safetensors", {"tokens": str(count), "mass": "1.0"})
    wholes = {
        "top_k_00000.safetensors": (folder / "top_k_00000.safetensors").read_bytes(),
        "manifest.json": json.dumps({"format_version": 1, "complete": True, "made_from": {"seed": 0}}).encode(),
    }

    def draw(data):
        name = data.draw(st.sampled_from(sorted(wholes)))
        changed = data.draw(text_of(wholes[name]) if name.endswith("json") else bytes_of(wholes[name], 300))
        for other, whole in wholes.items():
            (folder / other).write_bytes(whole)
        (folder / name).write_bytes(changed)

        def read() -> None:
            read_manifest(folder)
            words = TopKRows([], folder, 1).words(0, labels)
            assert words["teacher_ids"].shape == words["teacher_log_probs"].shape == (count, 3)

        return f"{name} {shown(changed)}", read

    fuzz(150, draw)


def test_result_files(measured: Place, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    wholes = {file.name: file.read_bytes() for file in sorted(measured.results.glob("*.benchmarks.json"))}
    assert len(wholes) == 2

    def draw(data):
        name = data.draw(st.sampled_from(sorted(wholes)))
        changed = data.draw(text_of(wholes[name]))
        for other, whole in wholes.items():
            (folder / other).write_bytes(whole)
        (folder / name).write_bytes(changed)
        return f"{name} {changed_part(wholes[name], changed)}", lambda: report(ReportSettings(folder, tmp_path / "out"))

    fuzz(100, draw)


def changed_part(whole: bytes, changed: bytes) -> str:
    """The keys whose values differ, or the bytes."""
    try:
        before, now = json.loads(whole), json.loads(changed)
    except ValueError:
        return shown(changed)
    if not isinstance(now, dict):
        return shown(changed)
    return str({k: now.get(k, "(gone)") for k in before.keys() | now.keys() if before.get(k) != now.get(k)})[:400]


def test_files_of_a_run(place: Place, tmp_path):
    settings = compose([*place.training(), f"output_dir={tmp_path}/run"])
    run = RunFolder(settings)
    run.begin()
    run.finish({"loss_curve": [{"step": 1, "loss": 2.0}]})
    (run.bad_records).mkdir()
    (run.bad_records / "host-1.jsonl").write_text('{"file": "a", "record": 1, "error": "b"}\n')
    (run.path / "checkpoint-1").mkdir()
    (run.path / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    files = {file: file.read_bytes() for file in sorted(run.path.rglob("*")) if file.is_file()}

    def draw(data):
        file = data.draw(st.sampled_from(sorted(files)))
        changed = data.draw(
            bytes_of(files[file]) if file.suffix == ".yaml" else text_of(files[file], "jsonl" in file.name)
        )
        for other, whole in files.items():
            other.write_bytes(whole)
        file.write_bytes(changed)

        def read() -> None:
            run.checkpoint()
            summarize_bad_records(run.bad_records)
            if run.is_finished():
                run.summary()

        return f"{file.name} {shown(changed)}", read

    fuzz(200, draw)


# ---- settings


VALUES = (
    "", "null", "true", "0", "-1", "1", "3", "1e30", "nan", "abc", "a/b",
    "[]", "[1]", "[a,b]", "{}", "{a:1}", "'a b'", '"x',
    "${seed}", "${nothing}", "???", "a=b", "*", "../x", "é", "1,2", "choice(1,2)", "range(1,3)", "\\${a}", "_", "~",
)  # fmt: skip
GROUPS = sorted(folder.name for folder in CONFIG_DIR.iterdir() if folder.is_dir())


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_overrides(command, tmp_path):
    keys = [leaf.key for leaf in settings_of(command)] + [
        *GROUPS,
        "trainer.max_steps",
        "trainer.nothing",
        "hydra",
        "a.b",
    ]
    choices = [file.stem for file in CONFIG_DIR.glob("*/**/*.yaml")]
    random.Random(0).shuffle(choices)
    value = st.one_of(st.sampled_from(VALUES), st.sampled_from(choices), st.text(max_size=5))
    override = st.one_of(
        st.builds(
            lambda sign, key, value: f"{sign}{key}={value}",
            st.sampled_from(("", "", "", "+", "++", "~")), st.sampled_from(keys), value,
        ),
        st.builds(lambda sign, key: f"{sign}{key}", st.sampled_from(("~", "", "+")), st.sampled_from(keys)),
        st.text(max_size=8),
    )  # fmt: skip

    def draw(data):
        overrides = data.draw(st.lists(override, min_size=1, max_size=3))

        def read() -> None:
            composed = cli.COMMANDS[command].compose(overrides)
            if isinstance(composed, TrainSettings):
                check_settings(composed, paths=False)
            yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(composed), default=str)))

        return f"{command} {overrides}", read

    fuzz(35, draw)
