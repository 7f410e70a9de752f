"""Five small benchmarks in the column schemas of GQA, MMBench, MME, POPE and VQAv2, as lmms-eval 0.7.3 reads them.

Each is a folder `benchmarks/lmms-lab-encoder/{name}` with parquet files and a README whose YAML head names its
configurations and splits, as a data set on the hub has; with the working directory at `benchmarks/`, the unmodified
tasks load it by its name. The columns are those that the tasks read plus the real sets' other plain columns.

In every benchmark the question alone says as little as possible: under each question text the answers are balanced.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from voco_llama.toyworld.balance import balanced_groups
from voco_llama.toyworld.dialogues import options_of
from voco_llama.toyworld.questions import LETTERS, TEMPLATES, YES_NO, Question, all_questions
from voco_llama.toyworld.scenes import Scene
from voco_llama.toyworld.settings import ToyWorldSettings
from voco_llama.toyworld.tables import FLAG, IMAGE, INT, TEXT, Images, Row, draw_all, write_card, write_table
from voco_llama.toyworld.writers import choices_rng
from voco_llama.toyworld.yes_no_benchmarks import write_mme, write_pope

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
MMBENCH_CATEGORIES = {
    "color": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "shape": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "position": ("object_localization", "finegrained_perception (instance-level)"),
    "count": ("object_localization", "finegrained_perception (instance-level)"),
}
GQA_SEMANTICS = {
    "existence": "obj", "color": "attr", "shape": "attr", "relation": "rel", "comparison": "attr", "position": "rel",
}  # fmt: skip


def write_benchmarks(root: Path, scenes: dict[str, Sequence[Scene]], settings: ToyWorldSettings) -> None:
    """Writes `benchmarks/`.

    Args:
        root: Folder of the world.
        scenes: Benchmark -> its scenes.
        settings: Sizes and noise.
    """
    for name, build in BUILDERS.items():
        folder = root / "benchmarks" / OWNER / name
        rng = choices_rng(settings, f"benchmark {name}")
        build(folder, draw_all(scenes[name], name, settings), settings, rng)


def _shares(shares: dict[str, float], total: int) -> dict[str, int]:
    return {name: round(share * total / sum(shares.values())) for name, share in shares.items()}


def _ask(
    images: Images, shares: dict[str, float], settings: ToyWorldSettings, rng: random.Random
) -> list[tuple[int, Question]]:
    pool = [all_questions(scene, settings) for scene in images.scenes]
    picked = balanced_groups(pool, _shares(shares, settings.benchmark_questions), rng, Counter())
    return sorted(picked, key=lambda entry: entry[0])


def _gqa(folder: Path, images: Images, settings: ToyWorldSettings, rng: random.Random) -> None:
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
    paths = {
        f"testdev_balanced_{part}": {"testdev": f"testdev_balanced_{part}/testdev-00000-of-00001.parquet"}
        for part in ("images", "instructions")
    }
    columns = dict.fromkeys(("id", "imageId", "question", "answer", "fullAnswer"), TEXT) | {"isBalanced": FLAG}
    columns |= {"groups": {"global": TEXT, "local": TEXT}, "entailed": TEXT, "equivalent": TEXT}
    columns |= {"types": {"structural": TEXT, "semantic": TEXT, "detailed": TEXT}, "semanticStr": TEXT}
    write_table(folder / paths["testdev_balanced_images"]["testdev"], pictures, {"id": TEXT, "image": IMAGE})
    write_table(folder / paths["testdev_balanced_instructions"]["testdev"], rows, columns)
    write_card(folder, paths)


def _vqav2(folder: Path, images: Images, settings: ToyWorldSettings, rng: random.Random) -> None:
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
    path = "data/validation-00000-of-00001.parquet"
    write_table(folder / path, rows, columns)
    write_card(folder, {"default": {"validation": path}})


def _mmbench(folder: Path, images: Images, settings: ToyWorldSettings, rng: random.Random) -> None:
    shares = {name: 1.0 for name in TEMPLATES if name.partition(".")[0] in MMBENCH_CATEGORIES}
    shares = {name: share for name, share in shares.items() if not name.endswith(".verify")}
    letters: dict[str, Counter[str]] = defaultdict(Counter)
    rows = []
    for number, (index, question) in enumerate(_ask(images, shares, settings, rng)):
        used = letters[question.text]
        usable = LETTERS[: min(len(LETTERS), len(question.choices))]
        letter = min(usable, key=lambda letter: (used[letter], rng.random()))
        used[letter] += 1
        options, right = options_of(question, rng, letter)
        category, parent = MMBENCH_CATEGORIES[question.kind]
        row: Row = {"index": number, "question": question.text, "hint": "nan", "answer": right}
        row |= {letter: options.get(letter, "nan") for letter in LETTERS}
        row |= {"category": category, "image": images.cell(index, f"toy_mmbench_{index:06d}.png"), "source": "toyworld"}
        rows.append(row | {"L2-category": parent, "comment": "nan", "split": "dev"})
    columns = {"index": INT} | dict.fromkeys(("question", "hint", "answer", *LETTERS, "category"), TEXT)
    columns |= {"image": IMAGE} | dict.fromkeys(("source", "L2-category", "comment", "split"), TEXT)
    path = "en/dev-00000-of-00001.parquet"
    write_table(folder / path, rows, columns)
    write_card(folder, {"en": {"dev": path}})


BUILDERS: dict[str, Callable[[Path, Images, ToyWorldSettings, random.Random], None]] = {
    "GQA": _gqa,
    "MMBench": _mmbench,
    "MME": write_mme,
    "POPE": write_pope,
    "VQAv2": _vqav2,
}
