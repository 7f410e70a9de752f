"""What was typed, and what the setting then is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.overrides import as_value, check_lists_given_once, field_of, for_hydra, split, type_of
from voco_llama.settings import TrainSettings


@dataclass
class Item:
    file: str = "f"
    limit: int | None = None


@dataclass
class Small:
    text: str = "t"
    path: Path | None = None
    texts: list[str] = field(default_factory=list)
    paths: list[Path] | None = None
    numbers: list[int] = field(default_factory=list)
    items: list[Item] = field(default_factory=lambda: [Item()])
    number: int = 0
    real: float = 0.0
    yes: bool = False
    anything: Any = None
    table: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The settings that overrides make."""
    monkeypatch.setattr("voco_llama.config_files.CONFIG_DIR", tmp_path)
    (tmp_path / "small.yaml").write_text("defaults: [small_schema]\n")
    return lambda *overrides: compose(overrides, "small", Small)


AS_TYPED = [
    "left,right.png",
    "runs/lr=1e-3/final",
    "scene (1).png",
    "a#1.png",
    "~a.png",
    "a~b",
    "1_000",
    "007",
    "1e-3",
    "true",
    "nan",
    "-x",
    "it's",
    'say "a"',
    "'a'b'",
    "a'",
    " b ",
    "c:\\d\\e",
    "\\",
    "é/😀.png",
    "[a]",
    "{a: 1}",
    "choice(a,b)",
    "range(3)",
    "x]",
    "=",
    "a:b",
    "a;b|c&d<e>!^`f`",
    "%41",
    "$HOME",
    "What is it, really?",
    "two\nlines",
]


@pytest.mark.parametrize("typed", AS_TYPED)
def test_texts_and_paths_are_taken_as_they_are_and_one_is_a_list_of_it(read, typed):
    lists = [] if typed.startswith("[") else [f"texts={typed}", f"paths={typed}"]
    settings = read(f"text={typed}", f"path={typed}", *lists)
    assert (settings.text, settings.path) == (typed, Path(typed))
    assert not lists or (settings.texts, settings.paths) == ([typed], [Path(typed)])


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("text='a b'", "text", "a b"),
        ('text="a, b"', "text", "a, b"),
        ("text='it\\'s'", "text", "it's"),
        ("text=a\\,b", "text", "a,b"),
        ("text=a\\ b", "text", "a b"),
        ("text=''", "text", ""),
        ("text='null'", "text", "null"),
        ("text=\\${path}", "text", "${path}"),
        ("text=${number}/a,b (1)", "text", "0/a,b (1)"),
        ("text=~/a b", "text", str(Path.home() / "a b")),
        ("path=~/a.png", "path", Path.home() / "a.png"),
        ("path=null", "path", None),
        ("path=NULL", "path", None),
        ("texts=[a, 'b, c']", "texts", ["a", "b, c"]),
        ('texts=["What is it?","It\'s?"]', "texts", ["What is it?", "It's?"]),
        ("texts='[1] or [2]?'", "texts", ["[1] or [2]?"]),
        ("texts=[]", "texts", []),
        ("paths=null", "paths", None),
        ("paths=[a.png, b.png]", "paths", [Path("a.png"), Path("b.png")]),
        ("numbers=3", "numbers", [3]),
        ("numbers=0,1,2", "numbers", [0, 1, 2]),
        ("numbers=[0,1]", "numbers", [0, 1]),
        ("number=1_000", "number", 1000),
        ("number=-1", "number", -1),
        ("real=1e-3", "real", 0.001),
        ("real=2", "real", 2.0),
        ("yes=TRUE", "yes", True),
        ("items.0.file=a,b", "items", [Item("a,b")]),
        ("items=[{file: x}, {limit: 3}]", "items", [Item("x"), Item(limit=3)]),
        ("anything=3", "anything", 3),
        ("anything=[a,b]", "anything", ["a", "b"]),
        ("anything=a,b", "anything", "a,b"),
        ("anything='[1] or [2]'", "anything", "[1] or [2]"),
        ("anything=What's it?", "anything", "What's it?"),
        ("table.new=1", "table", {"new": 1}),
        ("table.new=a (1).json", "table", {"new": "a (1).json"}),
        ("table={a: {b: 1}}", "table", {"a": {"b": 1}}),
    ],
)
def test_spellings(read, typed, key, value):
    assert getattr(read(typed), key) == value


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("number=abc", "number: Value 'abc' of type 'str' could not be converted to Integer: give a whole number"),
        ("number=1.5", "number: .*: give a whole number"),
        ("number=null", "number is null: give a whole number"),
        ("number=1,2", "cannot read the override 'number=1,2': number takes a whole number"),
        ("yes=maybe", "yes: .*: give true or false"),
        ("real=nan", "real is nan: give a finite number"),
        ("real=-inf", "real is -inf: give a finite number"),
        ("table.x=inf", "table.x is inf: give a finite number"),
        ("text=null", "text is null: give a text"),
        ("text=", "text= gives no value: write one, or text=\"''\" for the empty text"),
        ("path=", "path= gives no value: write one$"),
        ("number=", "number= gives no value"),
        ("text=${", r"text: .*: write \\\$\{ where the characters themselves are meant"),
        ("text=${nope}", r"text: Interpolation key 'nope' not found: write \\\$\{ where"),
        ("text=${text}", "text: Recursive interpolation"),
        ("text=???", "text has no value"),
        ("items=abc", r"items takes a list: write 'items=\[...\]'"),
        ("items.x.file=a", "items.x.file: 'x' is no number of an item"),
        ("items.7.file=a", "items has no item 7"),
        ("items.0=3", r"items.0: .*: give keys of its own \(file, limit\)"),
        ("texts=[a", r"texts takes a list: write 'texts=\[\"...\", \"...\"\]'"),
        ("numbers=[a]", "numbers.0: .*: give a whole number"),
        ("anything=[", r"cannot read the override 'anything=\[': anything takes \[a, b\], {a: 1} or a text, in quotes"),
        ('table.x={"a": 1}', "cannot read the override"),
        ("nothing=a,b", "unknown setting 'nothing'"),
        ("~nothing", "'nothing' does not exist"),
        ("", "cannot read the override '': write group=choice or key=value"),
        ("text", "cannot read the override 'text': .* with quotes around what has blanks"),
        ("=x", "cannot read the override '=x'"),
        ("a b=3", "cannot read the override 'a b=3'"),
        ("text.=3", "cannot read the override"),
        ("items.-1.file=3", "cannot read the override"),
        ("hydra.run.dir=x", "hydra.run.dir is Hydra's own"),
        ("hydra/launcher=x", "hydra/launcher is Hydra's own"),
        ("number=" + "[" * 2000, "cannot read the override 'number="),
    ],
)
def test_a_mistake_says_what_the_setting_takes(read, typed, message):
    with pytest.raises(SettingsError, match=message) as raised:
        read(typed)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_items_of_a_list_are_not_given_one_by_one():
    check_lists_given_once(["text=a", "number=1", "text=b", "texts=a", "texts=a", "texts=[b,c]"], Small)
    with pytest.raises(SettingsError, match=r"or both as a list, texts=\[a,b\]$"):
        check_lists_given_once(["texts=[a]", "texts=b"], Small)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@example("\\'")
@example('\\"')
@example("a\\\\")
def test_any_text_has_a_spelling(text):
    """And the words of one are read as its own text again."""
    override = for_hydra(split(f"text={as_value(text)}"), Small)
    assert for_hydra(override, Small) == override
    assert _hydra(override.value) == text


def _hydra(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"x={value}").value()


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("seed", int),
        ("data.sources.3.file", str),
        ("data.sources.0.options.x.y", Any),
        ("trainer.max_steps", Any),
        ("nothing", None),
        ("seed.x", None),
    ],
)
def test_types_of_keys(key, kind):
    assert type_of(TrainSettings, key) == kind


def test_fields_of_keys():
    assert field_of(TrainSettings, "prompt.order").metadata["choices"]
    assert field_of(TrainSettings, "trainer.x") is None
