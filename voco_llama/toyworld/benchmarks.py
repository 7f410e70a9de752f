"""Five small benchmarks in the column schemas of GQA, MMBench, MME, POPE and VQAv2, as lmms-eval 0.7.3 reads them.

Each is a folder `benchmarks/lmms-lab-encoder/{name}` with parquet files and a README whose YAML head names its
configurations and splits, as a data set on the hub has; with the working directory at `benchmarks/`, the unmodified
tasks load it by its name. The columns are those that the tasks read plus the real sets' other plain columns.

In every benchmark the question alone says as little as possible: under each question text the answers are balanced.
MME asks two questions on one subject, one to be answered yes and one no; POPE asks for each object as often where it is
as where it is not.
"""

import io
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from voco_llama.toyworld.dialogues import Balancer, balanced_groups, is_open, options_of
from voco_llama.toyworld.questions import LETTERS, TEMPLATES, YES_NO, Question, all_questions
from voco_llama.toyworld.scenes import Scene, choices_rng, draw, pixels_rng
from voco_llama.toyworld.settings import ToyWorldSettings

Row = dict[str, Any]
IMAGE = {"_type": "Image"}
TEXT = {"dtype": "string", "_type": "Value"}
INT = {"dtype": "int64", "_type": "Value"}
FLAG = {"dtype": "bool", "_type": "Value"}

NAMES = ("GQA", "MMBench", "MME", "POPE", "VQAv2")
OWNER = "lmms-lab-encoder"
# Shares of the questions, by template.
GQA_SHARES = {
    "existence.thing": 2, "color.verify": 2, "relation.shapes": 3, "relation.colors": 1, "comparison.color": 1,
    "color.of_shape": 2, "color.at": 2, "shape.of_color": 2, "shape.at": 2, "relation.neighbor": 1,
    "position.of_shape": 2,
}  # fmt: skip
VQA_SHARES = {
    "existence.thing": 2, "existence.part": 1, "color.verify": 1, "comparison.more": 1, "shape.verify": 1,
    "count.some": 2, "count.all": 1, "color.of_shape": 2, "color.at": 1, "shape.of_color": 1, "shape.at": 2,
    "position.of_color": 1, "position.of_thing": 1,
}  # fmt: skip
MMBENCH_CATEGORIES = dict.fromkeys(("color", "shape"), "attribute_recognition") | dict.fromkeys(
    ("position", "count"), "object_localization"
)
MMBENCH_PARENT = "finegrained_perception (instance-level)"
GQA_SEMANTICS = {
    "existence": "obj", "color": "attr", "shape": "attr", "relation": "rel", "comparison": "attr", "position": "rel",
}  # fmt: skip

MME_PROMPT = "Please answer yes or no."
MME_TEMPLATES = {"existence": "existence.thing"} | {name: f"{name}.verify" for name in ("count", "position", "color")}


class Table(NamedTuple):
    """A parquet file to be: the beginning of its path, its rows, their columns as `datasets.Features` has them."""

    path: str
    rows: list[Row]
    columns: dict[str, Any]


Tables = dict[str, dict[str, Table]]
"""Configuration -> split -> table."""


class Images:
    """The scenes of the benchmark `name`, drawn."""

    def __init__(self, scenes: Sequence[Scene], name: str, settings: ToyWorldSettings) -> None:
        self.scenes = scenes
        rng = pixels_rng(settings, f"benchmark {name}")
        self._encoded = []
        for scene in scenes:
            buffer = io.BytesIO()
            draw(scene, settings, rng).save(buffer, "PNG", compress_level=1)
            self._encoded.append(buffer.getvalue())

    def cell(self, index: int, name: str) -> dict[str, Any]:
        """An image as a parquet cell: its bytes and its file name."""
        return {"bytes": self._encoded[index], "path": name}


def write_table(file: Path, rows: list[Row], features: dict[str, Any]) -> None:
    """Writes rows as parquet that `datasets` reads back with these features, images as image columns."""
    from datasets import Features

    schema = Features.from_dict(features).arrow_schema
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)


def write_card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """Writes the README: config -> split -> parquet file."""
    listed = [
        {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for config, splits in configs.items()
    ]
    head = yaml.safe_dump({"configs": listed}, sort_keys=False)
    body = f"# {folder.name}, toy edition\n\nSynthetic scenes in the column schema of {folder.name}.\n"
    (folder / "README.md").write_text(f"---\n{head}---\n\n{body}", encoding="utf-8")


def write_benchmarks(root: Path, scenes: dict[str, Sequence[Scene]], settings: ToyWorldSettings) -> None:
    """Writes `benchmarks/` below `root`, from the scenes of each benchmark."""
    for name, build in BUILDERS.items():
        folder = root / "benchmarks" / OWNER / name
        made = build(Images(scenes[name], name, settings), settings, choices_rng(settings, f"benchmark {name}"))
        paths: dict[str, dict[str, str]] = defaultdict(dict)
        for config, splits in made.items():
            for split, table in splits.items():
                paths[config][split] = f"{table.path}-00000-of-00001.parquet"
                write_table(folder / paths[config][split], table.rows, table.columns)
        write_card(folder, paths)


def _ask(
    images: Images, shares: dict[str, float], settings: ToyWorldSettings, rng: random.Random
) -> list[tuple[int, Question]]:
    """Scene and question, by scene: about `benchmark_questions`, shared among the templates as `shares` says."""
    pool = [all_questions(scene, settings) for scene in images.scenes]
    total = sum(shares.values())
    quotas = {name: round(share * settings.benchmark_questions / total) for name, share in shares.items()}
    return sorted(balanced_groups(pool, quotas, rng), key=lambda entry: entry[0])


def _gqa(images: Images, settings: ToyWorldSettings, rng: random.Random) -> Tables:
    names = [f"toy_gqa_{index:06d}" for index in range(len(images.scenes))]
    pictures = [{"id": name, "image": images.cell(index, f"{name}.png")} for index, name in enumerate(names)]
    rows = []
    for number, (index, question) in enumerate(_ask(images, GQA_SHARES, settings, rng)):
        is_verify = question.choices == YES_NO
        kinds = {
            "structural": "verify" if is_verify else "query",
            "semantic": GQA_SEMANTICS[question.kind],
            "detailed": question.template,
        }
        row = {"id": f"{number:08d}", "imageId": names[index], "question": question.text, "answer": question.answer}
        row |= {"fullAnswer": f"{question.answer.capitalize()}.", "isBalanced": True, "types": kinds}
        row |= {"groups": {"global": question.kind, "local": question.subject}, "entailed": "", "equivalent": ""}
        rows.append(row | {"semanticStr": question.template})
    columns = dict.fromkeys(("id", "imageId", "question", "answer", "fullAnswer"), TEXT) | {"isBalanced": FLAG}
    columns |= {"groups": {"global": TEXT, "local": TEXT}, "entailed": TEXT, "equivalent": TEXT}
    columns |= {"types": {"structural": TEXT, "semantic": TEXT, "detailed": TEXT}, "semanticStr": TEXT}
    parts = {"images": (pictures, {"id": TEXT, "image": IMAGE}), "instructions": (rows, columns)}
    return {
        f"testdev_balanced_{part}": {"testdev": Table(f"testdev_balanced_{part}/testdev", *content)}
        for part, content in parts.items()
    }


def _vqav2(images: Images, settings: ToyWorldSettings, rng: random.Random) -> Tables:
    rows = []
    for number, (index, question) in enumerate(_ask(images, VQA_SHARES, settings, rng)):
        image_id = 100_000 + index
        kind = {"count": "number"}.get(question.kind, "other")
        given = [{"answer": question.answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
        row = {"question_type": " ".join(question.text.lower().split()[:3]), "question": question.text}
        row |= {"multiple_choice_answer": question.answer, "answers": given}
        row |= {"answer_type": "yes/no" if question.choices == YES_NO else kind, "image_id": image_id}
        name = f"toy_vqav2_{image_id:012d}.png"
        rows.append(row | {"question_id": image_id * 1000 + number, "image": images.cell(index, name)})
    columns = dict.fromkeys(("question_type", "multiple_choice_answer"), TEXT)
    columns["answers"] = [{"answer": TEXT, "answer_confidence": TEXT, "answer_id": INT}]
    columns |= {"image_id": INT, "answer_type": TEXT, "question_id": INT, "question": TEXT, "image": IMAGE}
    return {"default": {"validation": Table("data/validation", rows, columns)}}


def _mmbench(images: Images, settings: ToyWorldSettings, rng: random.Random) -> Tables:
    asked = [name for name in TEMPLATES if is_open(name)]
    letters: dict[str, Counter[str]] = defaultdict(Counter)
    rows = []
    for number, (index, question) in enumerate(_ask(images, dict.fromkeys(asked, 1), settings, rng)):
        used = letters[question.text]
        usable = LETTERS[: len(question.choices)]
        letter = min(usable, key=lambda letter: (used[letter], rng.random()))
        used[letter] += 1
        options, right = options_of(question, rng, letter)
        category = MMBENCH_CATEGORIES[question.kind]
        row: Row = {"index": number, "question": question.text, "hint": "nan", "answer": right}
        row |= {letter: options.get(letter, "nan") for letter in LETTERS}
        row |= {"category": category, "image": images.cell(index, f"toy_mmbench_{index:06d}.png"), "source": "toyworld"}
        rows.append(row | {"L2-category": MMBENCH_PARENT, "comment": "nan", "split": "dev"})
    columns = {"index": INT} | dict.fromkeys(("question", "hint", "answer", *LETTERS, "category"), TEXT)
    columns |= {"image": IMAGE} | dict.fromkeys(("source", "L2-category", "comment", "split"), TEXT)
    return {"en": {"dev": Table("en/dev", rows, columns)}}


def _mme(images: Images, settings: ToyWorldSettings, rng: random.Random) -> Tables:
    """Two questions on one subject a question id, one to be answered yes and one no."""
    rows = []
    pairs = settings.benchmark_questions // (2 * len(MME_TEMPLATES))
    for category, template in MME_TEMPLATES.items():
        balancer = Balancer(rng)
        order = rng.sample(range(len(images.scenes)), len(images.scenes))
        made = 0
        for index in order:
            pair = _yes_and_no(TEMPLATES[template](images.scenes[index], settings), balancer)
            if made < pairs and pair is not None:
                made += 1
                name = f"{category}/toy_{index:06d}.png"
                for question in pair:
                    asked = {"question": f"{question.text} {MME_PROMPT}"}
                    asked |= {"question_id": name, "image": images.cell(index, name), "category": category}
                    rows.append(asked | {"answer": question.answer.capitalize()})
    columns = {"question_id": TEXT, "image": IMAGE, "question": TEXT, "answer": TEXT, "category": TEXT}
    return {"default": {"test": Table("data/test", rows, columns)}}


def _yes_and_no(questions: Iterable[Question], balancer: Balancer) -> tuple[Question, Question] | None:
    """A pair on one subject, such that texts are asked with either answer equally often; None where there is none."""
    asked = list(questions)
    refusable = {entry.subject for entry in asked if entry.answer == "no"}
    affirmed = [entry for entry in asked if entry.answer == "yes" and entry.subject in refusable]
    if not affirmed:
        return None
    yes = balancer.most_owed(affirmed)
    return yes, balancer.most_owed(entry for entry in asked if entry.answer == "no" and entry.subject == yes.subject)


def _pope(images: Images, settings: ToyWorldSettings, rng: random.Random) -> Tables:
    """Existence, with POPE's three ways to choose what is absent.

    `random`: any absent object. `popular`: the absent objects that are most frequent over the benchmark's images.
    `adversarial`: the absent objects that co-occur most with those present. Each object is asked for as often where
    it is as where it is not, so that an object's popularity does not give the answer away.
    """
    frequency: Counter[str] = Counter()
    together: Counter[frozenset[str]] = Counter()
    present = [{f"{thing.color} {thing.shape}" for thing in scene.things} for scene in images.scenes]
    for objects in present:
        frequency.update(objects)
        together.update(frozenset(pair) for pair in combinations(sorted(objects), 2))
    everything = [f"{color} {shape}" for color in settings.color_names for shape in settings.shape_names]
    scores: dict[str, Callable[[str, set[str]], float]] = {
        "random": lambda name, here: 0.0,
        "popular": lambda name, here: frequency[name],
        "adversarial": lambda name, here: sum(together[frozenset((name, other))] for other in here),
    }
    by_category: dict[str, list[Row]] = {}
    for category, score in scores.items():
        asked = _pope_pairs(present, everything, score, settings.benchmark_questions // (2 * len(scores)), rng)
        by_category[category] = [
            {"question": f"Is there a {name}?", "answer": answer, "image_source": f"toy_pope_{index:06d}"}
            | {"image": images.cell(index, f"toy_pope_{index:06d}.png"), "category": category}
            for index, name, answer in sorted(asked)
        ]
    rows = list(chain.from_iterable(by_category.values()))
    for number, row in enumerate(rows):
        row |= {"id": str(number), "question_id": str(number + 1)}
    columns = dict.fromkeys(("id", "question_id", "question", "answer", "image_source"), TEXT)
    columns |= {"image": IMAGE, "category": TEXT}
    full = {category: Table(f"Full/{category}", asked, columns) for category, asked in by_category.items()}
    return {"default": {"test": Table("data/test", rows, columns)}, "Full": full}


def _pope_pairs(
    present: list[set[str]],
    everything: list[str],
    score: Callable[[str, set[str]], float],
    count: int,
    rng: random.Random,
) -> list[tuple[int, str, str]]:
    """`count` absent objects, best scored first, and each of them once more where it is present.

    An image takes its best-scored absent object of which there is still an unused image that shows it.

    Returns:
        (image, object, 'yes' or 'no').
    """
    shown: dict[str, list[int]] = {
        name: rng.sample(at, len(at))
        for name in everything
        if (at := [index for index, objects in enumerate(present) if name in objects])
    }
    asked: list[tuple[int, str, str]] = []
    used: set[tuple[int, str]] = set()
    while len(asked) < 2 * count:
        before = len(asked)
        for index in rng.sample(range(len(present)), len(present)):
            free = [
                name for name, at in shown.items() if at and name not in present[index] and (index, name) not in used
            ]
            if free and len(asked) < 2 * count:
                name = max(free, key=lambda name: (score(name, present[index]), rng.random()))
                used.add((index, name))
                asked += [(index, name, "no"), (shown[name].pop(), name, "yes")]
        if len(asked) == before:
            break
    return asked


BUILDERS: dict[str, Callable[[Images, ToyWorldSettings, random.Random], Tables]] = {
    "GQA": _gqa,
    "MMBench": _mmbench,
    "MME": _mme,
    "POPE": _pope,
    "VQAv2": _vqav2,
}
