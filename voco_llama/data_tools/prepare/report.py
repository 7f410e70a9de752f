"""What `voco-llama data prepare` says: where each part of a set stands, and what is left to do."""

from dataclasses import dataclass

from voco_llama.errors import DataError

READY, PARTLY, MISSING, BROKEN = "ready", "partly", "missing", "broken"
_WIDTH = max(map(len, (READY, PARTLY, MISSING, BROKEN)))


@dataclass(frozen=True)
class PartReport:
    """Where a part stands.

    Attributes:
        place: The file or folder.
        size: In words.
        state: `ready`, `partly`, `missing` or `broken`.
        detail: What was found, or what to do.
    """

    place: str
    size: str
    state: str
    detail: str

    def __str__(self) -> str:
        size = f" ({self.size})" if self.size else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"  {self.state:<{_WIDTH}}  {self.place}{size}{detail}"


@dataclass(frozen=True)
class SetReport:
    """A set with its parts.

    Attributes:
        name: As in `set=`.
        title: What it is.
        licence: Its terms.
        page: Where it is published.
        parts: In order.
        notes: What else to know.
    """

    name: str
    title: str
    licence: str
    page: str
    parts: tuple[PartReport, ...]
    notes: tuple[str, ...]

    @property
    def state(self) -> str:
        """`ready` if all parts are, `missing` if nothing is there, else `partly`."""
        states = {part.state for part in self.parts}
        return states.pop() if states in ({READY}, {MISSING}) else PARTLY

    def __str__(self) -> str:
        head = [f"{self.name}: {self.state}", f"  {self.title}", f"  licence: {self.licence}"]
        page = [f"  page: {self.page}"] if self.page else []
        return "\n".join([*head, *page, *map(str, self.parts), *(f"  note: {note}" for note in self.notes)]) + "\n"


@dataclass(frozen=True)
class PrepareReport:
    """What a call found.

    Attributes:
        sets: One, or all of them.
        asked: Whether the user asked for a set to be made ready, rather than for the list.
    """

    sets: tuple[SetReport, ...]
    asked: bool

    def __str__(self) -> str:
        return "\n".join(map(str, self.sets))

    def check(self) -> None:
        """Complain about a set that was asked for and is not ready.

        Raises:
            DataError: It is not.
        """
        for found in self.sets:
            left = sum(part.state != READY for part in found.parts)
            if self.asked and left:
                raise DataError(
                    f"{found.name} is not ready: {left} of its {len(found.parts)} parts are missing or broken; do what "
                    "their lines above say, and run the same command again"
                )
