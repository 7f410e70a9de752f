"""The file of a `VoCoCache`: what is saved is loaded, and whatever is damaged or of another model is refused."""

import json
import pickle
import zlib
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.tiny import tiny_model
from voco_llama import VoCoCache
from voco_llama.errors import CheckpointError


@pytest.fixture
def file(cache, tmp_path):
    cache.save(tmp_path / "images.voco")
    return tmp_path / "images.voco"


def contents(file) -> tuple[dict, dict]:
    """Tensors and our metadata of a file."""
    with safe_open(file, framework="pt") as opened:
        return {n: opened.get_tensor(n) for n in opened.keys()}, json.loads(opened.metadata()["voco_llama"])  # noqa: SIM118


def rewrite(file, tensors: dict | None = None, **metadata) -> None:
    old_tensors, old_metadata = contents(file)
    described = json.dumps(old_metadata | metadata)
    save_file(tensors or old_tensors, file, metadata={"voco_llama": described})


def checksum(*tensors: torch.Tensor) -> str:
    return f"{zlib.crc32(b''.join(tensor.numpy().tobytes() for tensor in tensors)):08x}"


def write_uniform(cache, file, **changes) -> dict:
    """The file of format 1, which had one number of VoCo tokens for all entries; None for what it does not say."""
    keys, values = (
        states.unflatten(1, (len(cache), cache.num_voco)).transpose(2, 3).contiguous()
        for states in (cache.keys, cache.values)
    )
    described = {
        "format": "voco_llama.cache",
        "format_version": "1",
        "fingerprint": cache.fingerprint,
        "num_voco": str(cache.num_voco),
        "dtype": "float32",
        "checksum": checksum(keys, values),
        **changes,
    }
    described = {name: value for name, value in described.items() if value is not None}
    save_file({"keys": keys, "values": values}, file, metadata={"voco_llama": json.dumps(described)})


def test_a_file_says_what_it_holds(file, model, cache):
    tensors, metadata = contents(file)
    assert metadata == {
        "format": "voco_llama.cache",
        "format_version": "2",
        "fingerprint": model.fingerprint(),
        "entries": "4",
        "dtype": "float32",
        "checksum": checksum(cache.keys, cache.values, cache.counts),
    }
    assert tensors.keys() == {"keys", "values", "counts"}
    assert torch.equal(tensors["keys"], cache.keys)
    assert tensors["counts"].tolist() == [2] * 4


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c,
        lambda c: c[1:3],
        lambda c: c.truncate(1),
        lambda c: c.to(torch.bfloat16),
        lambda c: c[[0, 0]],
        lambda c: c.truncate([1, 2, 2, 1]),
        lambda c: c[[]],
    ],
    ids=["whole", "slice", "truncated", "bfloat16", "repeated", "unequal", "empty"],
)
def test_what_is_saved_is_loaded(cache, model, tmp_path, change):
    changed = change(cache)
    changed.save(tmp_path / "c")
    loaded = VoCoCache.load(tmp_path / "c", model)
    assert torch.equal(loaded.keys, changed.keys)
    assert torch.equal(loaded.values, changed.values)
    assert torch.equal(loaded.counts, changed.counts)
    assert loaded.fingerprint == cache.fingerprint
    assert loaded.keys.dtype == changed.keys.dtype


def test_a_file_is_never_unpickled(file, model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a cache file was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    VoCoCache.load(file, model)
    file.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(CheckpointError, match="it is no VoCo cache, or damaged"):
        VoCoCache.load(file, model)


def refused(file, model) -> str:
    with pytest.raises(CheckpointError) as error:
        VoCoCache.load(file, model)
    text = str(error.value)
    assert text.startswith(f"{file}: ")
    assert "\n" not in text
    return text


def test_another_models_cache_is_refused(file, processor):
    assert "was made by another model" in refused(file, tiny_model(processor, seed=1))


def test_another_format_version_is_refused(file, model):
    rewrite(file, format_version="3")
    assert "has cache format 3, this version reads 1 and 2" in refused(file, model)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"voco_llama": "{"}, {"voco_llama": "[]"}])
def test_other_safetensors_files_are_refused(file, model, metadata):
    save_file({"keys": torch.zeros(1)}, file, metadata=metadata)
    assert "VoCo cache" in refused(file, model)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(file, model, keep):
    file.write_bytes(file.read_bytes()[:keep])
    assert "it is no VoCo cache, or damaged" in refused(file, model)


def test_a_missing_file_is_refused(tmp_path, model):
    assert "it is no VoCo cache, or damaged" in refused(tmp_path / "gone", model)


@pytest.mark.parametrize("missing", ["values", "counts"])
def test_a_missing_tensor_is_refused(file, model, missing):
    rewrite(file, {name: tensor for name, tensor in contents(file)[0].items() if name != missing})
    assert "it is no VoCo cache, or damaged" in refused(file, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flipped_bit_is_found(cache, model, tmp_path, dtype):
    file = tmp_path / "c"
    cache.to(dtype).save(file)
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    places = np.random.default_rng(0).integers(8 * begin, 8 * len(data), 50)
    for place in [8 * begin, 8 * len(data) - 1, *places.tolist()]:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        complaint = refused(file, model)  # another number of tokens belies the description before it is damage
        assert "damaged, its tensors are not what was saved" in complaint or "do not agree with its" in complaint


def test_a_flipped_bit_of_the_description_never_changes_a_number(file, model, cache):
    data = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * (8 + int.from_bytes(data[:8], "little")), 100).tolist():
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        with suppress(CheckpointError):
            loaded = VoCoCache.load(file, model)
            assert torch.equal(loaded.keys, cache.keys)
            assert torch.equal(loaded.values, cache.values)


@pytest.mark.parametrize("changes", [{}, {"checksum": None}], ids=["format 1", "before checksums"])
def test_a_file_of_before_unequal_entries_is_loaded(file, model, cache, changes):
    write_uniform(cache, file, **changes)
    loaded = VoCoCache.load(file, model)
    assert torch.equal(loaded.keys, cache.keys)
    assert torch.equal(loaded.values, cache.values)
    assert torch.equal(loaded.counts, cache.counts)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"checksum": "00000000"}, "damaged, its tensors are not what was saved"),
        ({"num_voco": "1"}, "do not agree with its description"),
        ({"dtype": "float16"}, "do not agree with its description"),
        ({"format_version": "2"}, "it is no VoCo cache, or damaged"),
        ({"fingerprint": "other"}, "was made by another model"),
    ],
)
def test_a_file_of_before_that_is_damaged_is_refused(file, model, cache, changes, complaint):
    write_uniform(cache, file, **changes)
    assert complaint in refused(file, model)


def test_a_file_without_its_checksum_is_refused(file, model):
    tensors, metadata = contents(file)
    del metadata["checksum"]
    save_file(tensors, file, metadata={"voco_llama": json.dumps(metadata)})
    assert "damaged" in refused(file, model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(cache, model, tmp_path, value):
    values = cache.values.clone()
    values[1, 5, 0, 3] = value
    replace(cache, values=values).save(tmp_path / "c")
    assert "holds numbers that are not finite" in refused(tmp_path / "c", model)


def test_saving_leaves_the_old_file_or_the_new_one(file, cache, model, monkeypatch):
    monkeypatch.setattr("voco_llama.model.cache.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache[0].save(file)
    assert len(VoCoCache.load(file, model)) == 4
    assert [other.name for other in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"keys": t["keys"][:1], "values": t["values"][:1]},
        lambda t: {"keys": t["keys"][:, :-1], "values": t["values"][:, :-1]},
        lambda t: {"values": t["values"][:, :1]},
        lambda t: {"keys": t["keys"][0], "values": t["values"][0]},
        lambda t: {"keys": t["keys"].half(), "values": t["values"].half()},
        lambda t: {"values": t["values"].half()},
        lambda t: {"counts": t["counts"][:3]},
        lambda t: {"counts": torch.tensor([2, 2, 2, 1])},
        lambda t: {"counts": torch.tensor([4, 4, 0, 0])},
        lambda t: {"counts": torch.tensor([4, 4, 1, -1])},
        lambda t: {"counts": t["counts"].int()},
        lambda t: {"counts": t["counts"][None]},
    ],
    ids=[
        "a layer less", "a token less", "fewer values", "no layers", "another dtype", "two dtypes", "an entry less",
        "other counts", "empty entries", "a negative count", "other integers", "two dimensions",
    ],
)  # fmt: skip
def test_tensors_that_belie_the_description_are_refused(file, model, change):
    held = contents(file)[0]
    tensors = {name: tensor.contiguous() for name, tensor in (held | change(held)).items()}
    rewrite(file, tensors)
    assert "do not agree with its description or with the model" in refused(file, model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_tensors_of_a_dtype_that_no_model_has_are_refused(file, model, dtype):
    held = contents(file)[0]
    held |= {name: held[name].to(dtype) for name in ("keys", "values")}
    bytes_of_all = [held[name].flatten().view(torch.uint8) for name in ("keys", "values", "counts")]
    rewrite(file, held, dtype=str(dtype).removeprefix("torch."), checksum=checksum(*bytes_of_all))
    assert "do not agree with its description or with the model" in refused(file, model)
