"""The yes/no benchmarks of the synthetic world: MME and POPE.

Both are balanced: MME asks two questions on one subject, one to be answered yes and one no; POPE asks for each object
as often where it is as where it is not.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

from voco_llama.toyworld.balance import Balancer
from voco_llama.toyworld.questions import TEMPLATES, Question
from voco_llama.toyworld.settings import ToyWorldSettings
from voco_llama.toyworld.tables import IMAGE, TEXT, Images, Row, write_card, write_table

MME_PROMPT = "Please answer yes or no."
MME_TEMPLATES = {
    "existence": "existence.thing",
    "count": "count.verify",
    "position": "position.verify",
    "color": "color.verify",
}


def write_mme(folder: Path, images: Images, settings: ToyWorldSettings, rng: random.Random) -> None:
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
    path = "data/test-00000-of-00001.parquet"
    write_table(folder / path, rows, columns)
    write_card(folder, {"default": {"test": path}})


def _yes_and_no(questions: Iterable[Question], balancer: Balancer) -> tuple[Question, Question] | None:
    """A pair on one subject, such that texts are asked with either answer equally often; None where there is none."""
    asked = list(questions)
    refusable = {entry.subject for entry in asked if entry.answer == "no"}
    affirmed = [entry for entry in asked if entry.answer == "yes" and entry.subject in refusable]
    if not affirmed:
        return None
    yes = balancer.most_owed(affirmed)
    return yes, balancer.most_owed(entry for entry in asked if entry.answer == "no" and entry.subject == yes.subject)


def write_pope(folder: Path, images: Images, settings: ToyWorldSettings, rng: random.Random) -> None:
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
    rows = [row for asked in by_category.values() for row in asked]
    for number, row in enumerate(rows):
        row |= {"id": str(number), "question_id": str(number + 1)}
    columns = dict.fromkeys(("id", "question_id", "question", "answer", "image_source"), TEXT)
    columns |= {"image": IMAGE, "category": TEXT}
    path = "data/test-00000-of-00001.parquet"
    write_table(folder / path, rows, columns)
    full = {category: f"Full/{category}-00000-of-00001.parquet" for category in by_category}
    for category, asked in by_category.items():
        write_table(folder / full[category], asked, columns)
    write_card(folder, {"default": {"test": path}, "Full": full})


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
