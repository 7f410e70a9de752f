"""`kind=efficiency`: the paper's Table 7 with everything stated, for one question on each image of a batch.

The rows, for each number N of VoCo tokens:

    no_cache        image and question are read; nothing is kept
    full_cache      the question is read over the kept keys and values of all vision tokens
    compress_N      an image to the keys and values of its VoCo tokens; no question
    voco_cold_N     that, and then the question
    voco_cached_N   the question over kept VoCo tokens
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from voco_llama.bench.efficiency_page import page, plot
from voco_llama.bench.measuring import alternate, in_own_process, peak_of, spread
from voco_llama.bench.methods import Asking, bytes_of
from voco_llama.bench.results import Findings
from voco_llama.bench.settings import BenchSettings
from voco_llama.bench.shape import build_model, images
from voco_llama.model.flops import HALF, answer_flops, compress_flops, image_flops
from voco_llama.model.voco_llama import VoCoLlama

__all__ = ["measure", "page", "plot"]

GPU_SHARE, CPU_BUDGET = 0.2, 0.25e9
"""What keys and values may take where nothing else is said: of a GPU's memory, and bytes on a CPU."""
WHOLE = 1.0
"""The part of a causal square that the counter counts."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        run: Answers a batch with so many new tokens; of `compress`, which has no answers, told 1.
        kept: Tokens of an image whose keys and values are kept.
        kv_bytes: Theirs, as the tensors have it.
        flops: To the first token of one answer, told which part of a causal square to count.
        answers: Whether it does.
        is_kept: Whether what it reads of an image was there before.
    """

    run: Callable[[int], object]
    kept: int
    kv_bytes: int
    flops: Callable[[float], int]
    answers: bool = True
    is_kept: bool = False


def methods(model: VoCoLlama, settings: BenchSettings, count: int) -> dict[str, Callable[[], Method]]:
    """The rows for a batch of so many questions, each on its own image; what a row keeps is made when it is called."""
    own, config = settings.efficiency, model.config
    asking, every = Asking(model, own.text), range(count)
    pixel_values = images(model, count)
    vision = config.num_vision_tokens

    def no_cache() -> Method:
        def flops(causal: float) -> int:
            return image_flops(config) + answer_flops(config, vision + own.text, 1, 0, causal)

        return Method(partial(asking.no_cache, pixel_values), 0, 0, flops)

    def full_cache() -> Method:
        filled = asking.fill(pixel_values)
        flops = partial(answer_flops, config, own.text, 1, vision)
        return Method(partial(asking.full_cache, filled, every), vision, bytes_of(filled), flops, is_kept=True)

    def compress(num_voco: int) -> Method:
        kept = model.compress(pixel_values, num_voco)[:1].num_bytes
        flops = partial(compress_flops, config, 1, num_voco)
        return Method(lambda _: model.compress(pixel_values, num_voco), num_voco, kept, flops, answers=False)

    def cold(num_voco: int) -> Method:
        kept = model.compress(pixel_values, num_voco)[:1].num_bytes

        def flops(causal: float) -> int:
            reads = answer_flops(config, own.text, 1, num_voco, causal)
            return compress_flops(config, 1, num_voco, causal) + reads

        def run(new: int) -> object:
            return asking.voco(model.compress(pixel_values, num_voco), every, new)

        return Method(run, num_voco, kept, flops)

    def cached(num_voco: int) -> Method:
        cache = model.compress(pixel_values, num_voco)
        flops = partial(answer_flops, config, own.text, 1, num_voco)
        run = partial(asking.voco, cache, every)
        return Method(run, num_voco, cache[:1].num_bytes, flops, is_kept=True)

    found: dict[str, Callable[[], Method]] = {"no_cache": no_cache, "full_cache": full_cache}
    for num_voco in own.num_voco:
        found[f"compress_{num_voco}"] = partial(compress, num_voco)
        found[f"voco_cold_{num_voco}"] = partial(cold, num_voco)
        found[f"voco_cached_{num_voco}"] = partial(cached, num_voco)
    return found


def measure(settings: BenchSettings, findings: Findings) -> None:
    """See the module."""
    own, model = settings.efficiency, build_model(settings).eval()
    findings.add("asked", {"text": own.text, "new": own.new, "vision": model.config.num_vision_tokens})
    findings.add("counts", {name: _count(model, make()) for name, make in methods(model, settings, 1).items()})
    for count in own.batches:
        findings.add(f"batch/{count}", _times(settings, model, count))
    findings.add("throughput", _throughput(settings, model))


def _count(model: VoCoLlama, method: Method) -> dict[str, int]:
    """Keys and values, and FLOPs, of one image and question."""
    return {
        "kept": method.kept,
        "kv_bytes": method.kv_bytes,
        "kv_bytes_computed": model.config.kv_bytes(method.kept, model.dtype),
        "flops": method.flops(HALF),
        "flops_as_counted": method.flops(WHOLE),
        "flops_counted": counted(partial(method.run, 1)),
    }


def counted(work: Callable[[], object]) -> int:
    """What torch's counter counts: attention as its plain products, since it knows no fused kernel of CPUs."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def _times(settings: BenchSettings, model: VoCoLlama, count: int) -> dict[str, Any]:
    """Times of all rows in turn; peaks, on a CPU each in a process of its own."""
    own, works = settings.efficiency, {}
    made = {name: make() for name, make in methods(model, settings, count).items()}
    for name, method in made.items():
        works[f"{name}/first"] = partial(_run, method, 1)
        if method.answers and own.new > 1:
            works[f"{name}/all"] = partial(_run, method, own.new)
    timings = {n: t.to_plain() for n, t in alternate(works, settings.rounds, model.device, f"batch {count}").items()}
    found = {}
    for name in made:
        first, all_ = timings[f"{name}/first"], timings.get(f"{name}/all")
        found[name] = {"first": first}
        if all_ is not None and not (all_["failed"] or first["failed"]):
            tokens = [(a - f) / (own.new - 1) for a, f in zip(all_["seconds"], first["seconds"], strict=True)]
            found[name] |= {"all": all_, "a_token": spread(tokens)}
        if model.device.type == "cpu" and settings.peak_memory:
            found[name]["memory"] = in_own_process(_peak, settings, name, count)
    return found


def _run(method: Method, new: int, _: int) -> Callable[[], object]:
    return partial(method.run, new)


def _peak(threads: int, settings: BenchSettings, name: str, count: int) -> dict[str, int]:
    torch.set_num_threads(threads)
    method = methods(build_model(settings).eval(), settings, count)[name]()
    return peak_of(partial(method.run, settings.efficiency.new))


def _throughput(settings: BenchSettings, model: VoCoLlama) -> dict[str, Any]:
    """Questions a second of the rows that answer from what they keep, each with the batch that fits the budget."""
    own, works, batches = settings.efficiency, {}, {}
    names = ["no_cache", "full_cache", *(f"voco_cached_{num_voco}" for num_voco in own.num_voco)]
    for name in names:
        image = model.config.num_vision_tokens if name in names[:2] else int(name.rpartition("_")[2])
        batches[name] = fitting(model, image + own.text + own.new, own.budget_gb, own.most_rows)
        works[name] = partial(_run, methods(model, settings, batches[name])[name](), own.new)
    timings = alternate(works, settings.rounds, model.device, "questions a second")
    return {
        name: timing.to_plain()
        | {"rows": batches[name], "a_second": spread([batches[name] / seconds for seconds in timing.seconds])}
        for name, timing in timings.items()
        if timing.failed is None
    }


def fitting(model: VoCoLlama, tokens: int, budget_gb: float | None, most: int) -> int:
    """How many rows of so many tokens have keys and values that fit a budget (10^9 bytes); at least 1."""
    budget = CPU_BUDGET if budget_gb is None else budget_gb * 1e9
    if budget_gb is None and model.device.type == "cuda":
        budget = GPU_SHARE * torch.cuda.get_device_properties(model.device).total_memory
    return max(1, min(most, int(budget // model.config.kv_bytes(tokens, model.dtype))))
