"""A dry run as text."""

from collections.abc import Iterator

from voco_llama.preflight.dry_run import DryRun, Memory
from voco_llama.preflight.memory import MOMENTS
from voco_llama.training.stages import format_table

GB = 1e9


def format_dry_run(run: DryRun) -> str:
    """Lines for a terminal."""
    return "\n".join([*_model(run), *_length(run), *_saved(run), *memory_lines(run.memory), *_notes(run)]) + "\n"


def _model(run: DryRun) -> Iterator[str]:
    vision, voco = run.segment
    yield f"segment: {vision} vision + {voco} VoCo tokens; {run.segments} a row"
    yield "one forward pass of a process:"
    width = max(map(len, run.shapes))
    for name, shape in run.shapes.items():
        yield f"  {name:<{width}}  {list(shape)}"
    yield "parameters:"
    yield format_table(run.parameters)


def _length(run: DryRun) -> Iterator[str]:
    epoch, length = run.epoch, run.length
    yield f"global batch: {run.batch}"
    at_most = "" if epoch.tokens is not None else "at most "
    counts = [
        (epoch.rows, "rows", ""),
        (epoch.images, "images or frames", at_most),
        (epoch.tokens, "tokens (estimated from characters)", ""),
    ]
    known = [f"{qualifier}{number:,} {what}" for number, what, qualifier in counts if number is not None]
    yield f"an epoch: {', '.join(known) or 'unknown'} ({epoch.source})"
    longest, mean = run.tokens_a_step
    yield f"tokens a step: {longest:,} at full length" + ("" if mean is None else f", {mean:,} of the data on average")
    if length.steps is None:
        yield "steps: unknown"
        return
    epoch_steps = "" if length.steps_an_epoch is None else f" ({length.steps_an_epoch:,} an epoch)"
    yield f"steps: {length.steps:,}{epoch_steps}, the first {length.warmup:,} of them warm-up"
    rates = ", ".join(f"{rate:.2g} at {step:,}" for step, rate in length.learning_rates)
    yield f"learning rate: {rates or 'follows the training'}"


def _saved(run: DryRun) -> Iterator[str]:
    saved = run.saved
    yield (
        f"written: the model {saved.final / GB:.1f} GB; {saved.kept} checkpoints of {saved.checkpoint / GB:.1f} GB at"
        f" most; {saved.total / GB:.1f} GB together"
    )


def memory_lines(memory: Memory) -> Iterator[str]:
    """The memory estimate, line by line, and what fits."""
    estimate, work = memory.estimate, memory.plan.work
    yield f"memory of a GPU, {work.rows} rows of {work.length} tokens (GB = 10^9 bytes):"
    names = {term.name for term in estimate.terms}
    width = max(len(name) for name in (*names, "together"))
    yield f"  {'':<{width}}  " + "  ".join(f"{moment:>6}" for moment in MOMENTS)
    for term in estimate.terms:
        cells = (f"{term.bytes / GB:6.2f}" if moment in term.moments else " " * 6 for moment in MOMENTS)
        yield f"  {term.name:<{width}}  {'  '.join(cells)}  {term.formula}"
    yield f"  {'together':<{width}}  " + "  ".join(f"{estimate.at(moment) / GB:6.2f}" for moment in MOMENTS)
    if estimate.host_bytes:
        yield f"  in the machine's memory: {estimate.host_bytes / GB:.1f} GB for each process"
    yield f"peak: {verdict(memory)}"


def verdict(memory: Memory) -> str:
    """One line: the peak, whether it fits, and the overrides that make it fit."""
    peak = f"{memory.estimate.peak / GB:.1f} GB"
    if memory.capacity is None:
        return f"{peak}; set hardware.gpu_memory_gb to hear whether that fits"
    room = f"{memory.capacity / GB:.0f} GB"
    if memory.fits:
        return f"{peak} of {room}: fits"
    if memory.remedy is None:
        return f"{peak} of {room}: does not fit, nor do fewer rows, ZeRO-3, adapters or offloading: use more GPUs"
    remedy = memory.remedy
    return f"{peak} of {room}: does not fit; {remedy.peak / GB:.1f} GB with: {' '.join(remedy.overrides)}"


def _notes(run: DryRun) -> Iterator[str]:
    for note in run.notes:
        yield f"note: {note}"
