"""Which questions are asked, so that no question alone gives its answer away.

Under every question text the possible answers become evenly frequent: in the training data as evenly as the scenes
allow, in the benchmarks exactly.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable

from voco_llama.toyworld.questions import YES_NO, Question


class Balancer:
    """Chooses questions so that under each question text the answers become evenly frequent."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._asked: Counter[tuple[str, str]] = Counter()

    def least_asked(self, candidates: Iterable[Question]) -> Question:
        """The candidate asked least often so far with its answer; ties are broken at random."""
        chosen = min(candidates, key=lambda entry: (self._asked[entry.text, entry.answer], self._rng.random()))
        self._asked[chosen.text, chosen.answer] += 1
        return chosen

    def choose(self, candidates: Iterable[Question]) -> Question | None:
        """The same, but a yes/no question waits while its answer leads the other: there may be none to choose."""
        waiting = [entry for entry in candidates if entry.choices != YES_NO or self._lead(entry) <= 0]
        return self.least_asked(waiting) if waiting else None

    def most_owed(self, candidates: Iterable[Question]) -> Question:
        """The yes/no candidate whose text has had the other answer most often beyond this one."""
        chosen = min(candidates, key=lambda entry: (self._lead(entry), self._rng.random()))
        self._asked[chosen.text, chosen.answer] += 1
        return chosen

    def _lead(self, question: Question) -> int:
        """How much more often a yes/no text was asked with this answer than with the other."""
        other = YES_NO[question.answer == YES_NO[0]]
        return self._asked[question.text, question.answer] - self._asked[question.text, other]


def balanced_groups(
    pool: list[list[Question]], quotas: dict[str, int], rng: random.Random, load: Counter[int]
) -> list[tuple[int, Question]]:
    """Picks questions in groups: one text, asked once for each of its answers, each time about another scene.

    So the answers under each text are exactly uniform.

    Args:
        pool: For each scene, its questions.
        quotas: Template -> about how many questions; rounded to whole groups, and short where scenes run out.
        rng: Order of the texts.
        load: Scene -> questions asked about it so far; the least asked are taken first. Updated.

    Returns:
        (scene, question) pairs.
    """
    found: dict[str, dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    asked_of: dict[tuple[int, str], Question] = {}
    for scene, questions in enumerate(pool):
        for question in questions:
            found[question.template][question.text][question.answer].append(scene)
            asked_of[scene, question.text] = question
    picked: list[tuple[int, Question]] = []
    for template, quota in quotas.items():
        texts = [text for text, answers in found[template].items() if len(answers) > 1]
        rng.shuffle(texts)
        taken = 0
        while texts and taken < quota:
            for text in list(texts):
                scenes_of = found[template][text]
                if not all(scenes_of.values()):
                    texts.remove(text)
                elif taken < quota:
                    for scenes in scenes_of.values():
                        scene = min(scenes, key=lambda scene: (load[scene], rng.random()))
                        scenes.remove(scene)
                        load[scene] += 1
                        taken += 1
                        picked.append((scene, asked_of[scene, text]))
    return picked
