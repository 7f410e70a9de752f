"""What `data stats` prints: a column for each source and one for the epoch, and the steps of a training."""

from collections.abc import Callable, Sequence
from typing import Any

from voco_llama.data_tools.stats.stats import SIZE_MEASURES, TOKEN_MEASURES

LEGEND = "mean, median, 95 %, max"


def stats_table(stats: dict[str, Any]) -> str:
    """The result of `count_data` as text."""
    sources, epoch, steps = stats["sources"], stats["epoch"], stats["steps"]
    columns = [*sources, epoch]
    heads = [*(f"source {number}" for number in range(len(sources))), "epoch"]
    rows = [["", *heads], *([name, *(show(column) for column in columns)] for name, show in _rows(stats))]
    sampled = "all records of an epoch" if not stats["sample"] else f"at most {stats['sample']} records of a source"
    lines = [
        *(f"source {number}: {source['name']}" for number, source in enumerate(sources)),
        "",
        *_aligned(rows),
        "",
        f"spreads are {LEGEND}; read: {sampled}",
        f"row lengths: {stats['lengths']}",
        f"a step: {steps['records_a_step']} records, {steps['batches_a_step']} batches of {steps['records_a_batch']}"
        f" (processes={steps['processes']}); an epoch: {steps['steps_an_epoch']} steps",
    ]
    return "\n".join(lines) + "\n"


def _rows(stats: dict[str, Any]) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("records", lambda column: str(column["records"])),
        ("records an epoch", lambda column: str(column["epoch_records"])),
        ("records a step", lambda column: _number(column.get("records_a_step", stats["steps"]["records_a_step"]))),
        ("text-only", lambda column: _percent(column["text_only"])),
        ("media a record", lambda column: f"{_number(column['media']['mean'])}, at most {column['media']['max']}"),
        ("records read", lambda column: str(column["sampled"])),
        ("  of them bad", lambda column: str(column["bad_records"])),
        ("images unreadable", lambda column: str(column["bad_images"])),
        ("turns", lambda column: _spread(column["turns"])),
    ]
    rows += [(_words(name), _shows(name)) for name in TOKEN_MEASURES]
    rows.append((f"longer than {stats['max_length']}", lambda column: _percent(column["cut"])))
    return rows + [(f"image {_words(name)}", _shows(name)) for name in SIZE_MEASURES]


def _shows(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda column: _spread(column[name])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _spread(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else ", ".join(_number(spread[key]) for key in ("mean", "median", "p95", "max"))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
