"""Composition: values, defaults, and one clear line for each mistake."""

from dataclasses import dataclass, field

import pytest

from voco_llama import composition
from voco_llama.composition import compose, difference, flatten, to_plain
from voco_llama.errors import SettingsError
from voco_llama.settings import TeacherSettings


def test_overrides_reach_every_level():
    settings = compose(
        [
            "experiment=toy/voco_4",
            "compression=voco_2",
            "model.vision.layer=-1",
            "data.sources.0.limit=7",
            "trainer.adam_beta2=0.95",
        ]
    )
    assert (settings.stage.name, settings.compression.num_voco) == ("voco", 2)
    assert settings.model.vision.layer == -1
    assert settings.data.sources[0].limit == 7
    assert settings.trainer["adam_beta2"] == 0.95
    assert settings.output_dir == "runs/toy/voco_2"


@pytest.mark.parametrize(
    ("overrides", "num_voco", "folder"),
    [
        (["experiment=voco_32"], 32, "voco_32"),
        (["experiment=voco", "compression.num_voco=32"], 32, "voco_32"),
        (["experiment=toy/voco", "compression=voco_5"], 5, "toy/voco_5"),
        (["experiment=toy/voco_3_kl"], 3, "toy/voco_3_kl"),
        (["compression.num_voco=2", "experiment=toy/q_former_4"], 2, "toy/q_former_2"),
        (["compression=average_pool_2", "experiment=toy/voco_8"], 2, "toy/voco_2"),
        (["experiment=toy/voco_8", "compression=full"], 1, "toy/voco_1"),
        (["experiment=toy/video", "compression=elastic_16"], 16, "toy/video"),
    ],
)
def test_a_number_in_a_name_is_that_of_voco_tokens(overrides, num_voco, folder):
    settings = compose(overrides)
    assert (settings.compression.num_voco, settings.output_dir) == (num_voco, f"runs/{folder}")


@pytest.mark.parametrize("override", ["experiment=vocoo_4", "compression=full_x", "stage=voco_4"])
def test_a_number_makes_no_name_of_what_has_no_file(override):
    with pytest.raises(SettingsError, match=f"there is no {override}"):
        compose([override])


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("experiment=voco1", "voco_1"),
        ("experiment=toy/voco-4", "toy/voco_4"),
        ("experiment=toy/voco8_kl", "toy/voco_8_kl"),
        ("compression=voco16", "voco_16"),
        ("compression=elastic16", "elastic_16"),
    ],
)
def test_a_number_without_its_underscore(override, meant):
    with pytest.raises(SettingsError, match=f"^there is no {override}; did you mean '{meant}'"):
        compose([override])


def test_roots_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("VOCO_RUNS", "elsewhere")
    settings = compose(["experiment=toy/voco_1"])
    assert settings.output_dir == "elsewhere/toy/voco_1"
    assert settings.data.sources[0].file == "elsewhere/toyworld/instruct/train.json"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compression.num_vocoo=2", "'compression.num_vocoo'; did you mean 'compression.num_voco'"),
        ("++compression.num_vocoo=2", "'compression.num_vocoo'; did you mean 'compression.num_voco'"),
        ("data.sources.0.fil=x", "did you mean 'data.sources.0.file'"),
        ("compresion=voco_1", "did you mean 'compression'"),
        ("nothing_like_it=1", "known at the top are model, compression"),
        ("compression.num_voco=abc", "compression.num_voco: Value 'abc'"),
        ("model.vision=3", "model.vision"),
        ("compression.condition=vocoo", "choose one of voco, full"),
        ("prompt.order=last", "choose one of first, authors, llava, inline"),
        ("stage=foo", "there is no stage=foo"),
        ("stage=vioce", "did you mean 'voco'"),
        ("stage.name=pretrain", "choose one of clip, language, align, instruct, voco, video"),
        ("experiment=toy/voc", "did you mean 'toy/voco'"),
        ("stage=4", "there is no stage=4 (choices: align"),
        ("output_dir=???", "output_dir has no value"),
        ("seed==", "cannot read the override"),
        ("seed=-1", "seed is -1: give 0 to 4294967295"),
        ("seed=5000000000", "seed is 5000000000: give 0 to"),
        ("model.checkpoint=${nowhere}", "model.checkpoint"),
    ],
)
def test_a_mistake_is_one_line(override, message):
    with pytest.raises(SettingsError) as raised:
        compose([override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_schema_can_be_brought_along(tmp_path, monkeypatch):
    @dataclass
    class Small:
        count: int = 1
        names: list[str] = field(default_factory=list)

    monkeypatch.setattr("voco_llama.config_files.CONFIG_DIR", tmp_path)
    (tmp_path / "small.yaml").write_text("defaults: [small_schema, _self_]\ncount: 2\n")
    assert compose(["names=[a,b]"], "small", Small) == Small(2, ["a", "b"])
    (tmp_path / "small.yaml").write_text("defaults: [small_schema, _self_]\ncuont: 2\n")
    with pytest.raises(SettingsError, match=r"unknown setting 'cuont' in configs/small.yaml; did you mean 'count'"):
        compose([], "small", Small)


def test_an_unknown_key_in_a_group_file_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("voco_llama.config_files.CONFIG_DIR", tmp_path)
    (tmp_path / "compression").mkdir()
    (tmp_path / "train.yaml").write_text("defaults: [train_schema, compression: mine, _self_]\n")
    (tmp_path / "compression" / "mine.yaml").write_text("condition: voco\nnum_vocos: 1\n")
    with pytest.raises(SettingsError, match=r"compression/mine.yaml; did you mean 'compression.num_voco'"):
        compose([])


def test_broken_yaml_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("voco_llama.config_files.CONFIG_DIR", tmp_path)
    (tmp_path / "train.yaml").write_text("defaults: [train_schema\n")
    with pytest.raises(SettingsError) as raised:
        compose([])
    assert "\n" not in str(raised.value)


def test_flatten_names_every_leaf():
    tree = {"a": {"b": [1, {"c": 2}], "d": {}}, "e": []}
    assert dict(flatten(tree)) == {"a.b.0": 1, "a.b.1.c": 2, "a.d": {}, "e": []}
    assert dict(flatten(to_plain(compose(["seed=5"]))))["seed"] == 5


# ---- names that changed


def test_a_renamed_setting_says_its_new_name(monkeypatch):
    renamed = {
        "train": {"compression.tokens": "compression.num_voco", "stage=finetune": "write stage=instruct"},
        "teacher": {"words": "k"},
    }
    monkeypatch.setattr(composition, "RENAMED", renamed)
    for override, message in (
        ("compression.tokens=2", "compression.tokens is now compression.num_voco: write compression.num_voco=2"),
        ("+compression.tokens=2", "compression.tokens is now compression.num_voco: write compression.num_voco=2"),
        ("stage=finetune", "stage=finetune: write stage=instruct"),
        ("words=8", "words is now k: write k=8"),
    ):
        with pytest.raises(SettingsError) as raised:
            compose([override], "teacher", TeacherSettings)
        assert str(raised.value) == message
    with pytest.raises(SettingsError, match="unknown setting 'words'"):
        compose(["words=8"])


def test_processes_of_data_stats_are_the_hardwares():
    with pytest.raises(SettingsError, match=r"^processes is now hardware.num_processes: write .*num_processes=8$"):
        compose(["processes=8"], "data_stats")


# ---- what differs between settings that exist and those of now


@dataclass
class Inner:
    size: int = 3
    names: list[str] = field(default_factory=lambda: ["a", "b"])


@dataclass
class Item:
    file: str = "???"
    weight: float = 1.0
    inner: Inner = field(default_factory=Inner)


@dataclass
class Outer:
    seed: int = 0
    items: list[Item] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    points: list[Item] | None = None
    anything: dict = field(default_factory=dict)


def outer(*files: str, **values) -> dict:
    return to_plain(Outer(items=[Item(file) for file in files], **values))


def differing(there: dict, here: dict, **options) -> dict:
    return difference(there, here, Outer, **options)


def test_nothing_differs_from_itself():
    assert not difference(outer("x", "y"), outer("x", "y"), Outer)
    assert not difference(dict(flatten(outer("x"))), outer("x"), Outer)


def test_values_that_differ_are_shown_in_order_and_the_rest_is_counted():
    there, here = outer("x", seed=1), outer("x", seed=2, inner=Inner(size=4))
    found = difference(there, here, Outer)
    assert found == {"inner.size": (3, 4), "seed": (1, 2)}
    assert str(found) == "inner.size (3 there, 4 now), seed (1 there, 2 now)"
    many = difference({f"k{n}": n for n in range(8)}, {f"k{n}": -1 for n in range(8)})
    assert str(many).endswith("k4 (4 there, -1 now) and 3 more")
    assert str(difference({"data": "0123456789abcdef" * 4}, {"data": 1})) == "data (01234567... there, 1 now)"


def test_a_younger_key_had_its_default():
    for path in (("seed",), ("inner",), ("inner", "size"), ("inner", "names"), ("items", 0, "inner"), ("anything",)):
        there, here = outer("x"), outer("x")
        *parents, last = path
        part = there
        for key in parents:
            part = part[key]
        del part[last]
        assert not difference(there, here, Outer), path
        if last != "anything":
            assert difference(there, here), path
    there = outer("x")
    del there["items"][0]["weight"], there["inner"]["names"]
    here = outer("x", inner=Inner(names=["a"]))
    here["items"][0]["weight"] = 0.5
    assert differing(there, here) == {"items.0.weight": (1.0, 0.5), "inner.names.1": ("b", None)}


def test_a_key_that_is_gone_differs():
    assert differing(outer("x") | {"old": 1}, outer("x")) == {"old": (1, None)}


def test_lists_that_grew_or_shrank_differ():
    grown = differing(outer("x"), outer("x", "y"))
    assert grown["items.1.file"] == (None, "y")
    shrunk = differing(outer("x", "y"), outer("x"))
    assert shrunk["items.1.file"] == ("y", None)
    assert differing(outer(), outer("x"))["items.0.file"] == (None, "x")
    words = differing(outer(inner=Inner(names=["a"])), outer(inner=Inner(names=["a", "b"])))
    assert words == {"inner.names.1": (None, "b")}
    assert differing(outer(inner=Inner(names=["a"])), outer(inner=Inner(names=[])))["inner.names.0"] == ("a", None)
    assert differing(outer(), outer(points=[Item("p")]))["points.0.file"] == (None, "p")


def test_keys_may_be_free():
    there, here = outer("x", "y", seed=1), outer("x", "z", seed=2)
    there["items"][0]["weight"] = 7.0
    assert set(differing(there, here)) == {"seed", "items.0.weight", "items.1.file"}
    assert set(differing(there, here, free=("se", "items.*.file"))) == {"items.0.weight"}
    assert differing(there, here, free=("seed", "items")) == {}


@pytest.mark.parametrize(
    "override",
    [
        "experiment=toy/instruct_4",
        "experiment=toy/video_8",
        "experiment=video_7b_3",
        "compression=full_4",
        "experiment=toy/voco_01",
    ],
)
def test_a_number_is_taken_only_where_the_name_without_it_has_one(override):
    with pytest.raises(SettingsError, match="there is no"):
        compose([override])


@pytest.mark.parametrize("choice", ["toy/voco_4", "'toy/voco_4'", '"toy/voco_4"', "toy/voco_4.yaml"])
def test_a_numbered_name_may_be_quoted(choice):
    settings = compose([f"experiment={choice}"])
    assert settings.compression.num_voco == 4
    assert settings.output_dir.endswith("toy/voco_4")
