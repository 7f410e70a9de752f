import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voco_llama.data.readers import FORMATS, open_reader
from voco_llama.data.readers.caption_csv import CaptionCsv
from voco_llama.data.readers.hf_dataset import HfDataset, ParquetStream
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.readers.video_chatgpt import VideoChatGpt
from voco_llama.errors import SettingsError


@pytest.fixture
def files(tmp_path, arrow_cache) -> dict[str, Path]:
    (tmp_path / "media").mkdir()
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    (tmp_path / "chat.json").write_text(json.dumps([{"conversations": turns}]))
    (tmp_path / "captions.csv").write_text("videoid,name\n1,A ball\n")
    (tmp_path / "clips.json").write_text(json.dumps([{"q": "What?", "a": "A ball.", "video_id": "1"}]))
    (tmp_path / "media" / "1.mp4").touch()
    pq.write_table(pa.table({"conversations": [turns]}), tmp_path / "rows.parquet")
    return {
        "llava_json": tmp_path / "chat.json",
        "caption_csv": tmp_path / "captions.csv",
        "video_chatgpt": tmp_path / "clips.json",
        "hf_dataset": tmp_path / "rows.parquet",
    }


def test_every_format_opens(files, tmp_path):
    classes = {
        "llava_json": LlavaJson,
        "caption_csv": CaptionCsv,
        "video_chatgpt": VideoChatGpt,
        "hf_dataset": HfDataset,
    }
    assert FORMATS.keys() == classes.keys()
    for name, file in files.items():
        reader = open_reader(name, str(file), str(tmp_path / "media"))
        assert type(reader) is classes[name]
        assert reader.file == file
        assert len(reader.sizes.characters) == len(reader.sizes.media) == len(reader) == 1
        assert reader[0].turns[-1].role == "assistant"


def test_options_reach_the_reader(files, tmp_path):
    reader = open_reader("caption_csv", files["caption_csv"], tmp_path / "media", instruction="Say it.")
    assert reader[0].turns[0].text == "<image>\nSay it."


def test_text_only_needs_no_folder(files):
    for name in ("llava_json", "hf_dataset"):
        record = open_reader(name, files[name])[0]
        assert (record.images, record.video) == ((), None)


def test_only_tables_are_streamed(files):
    stream = open_reader("hf_dataset", files["hf_dataset"], shuffle_buffer=7)
    assert type(stream) is ParquetStream
    assert stream.shuffle_buffer == 7
    with pytest.raises(
        SettingsError, match=r"'llava_json' of .*chat\.json is not streamed, only hf_dataset \(Parquet\) is"
    ):
        open_reader("llava_json", files["llava_json"], shuffle_buffer=7)
    with pytest.raises(SettingsError, match="'hf_dataset' has no option 'colour'; it has: split, name, id_column"):
        open_reader("hf_dataset", files["hf_dataset"], shuffle_buffer=7, colour=1)


def test_bad_settings(files, tmp_path):
    with pytest.raises(SettingsError, match="'webdataset' is unknown; choose one of llava_json, caption_csv, video_"):
        open_reader("webdataset", files["llava_json"])
    with pytest.raises(SettingsError, match="'llava_json' has no option 'seed'; it has: marks"):
        open_reader("llava_json", files["llava_json"], tmp_path / "media", seed=1)
    with pytest.raises(SettingsError, match="'caption_csv' has no option 'colour'; it has: instruction, seed"):
        open_reader("caption_csv", files["caption_csv"], tmp_path / "media", colour=1)
    for name in ("caption_csv", "video_chatgpt"):
        with pytest.raises(SettingsError, match="needs media_folder, the folder of its clips"):
            open_reader(name, files[name])
