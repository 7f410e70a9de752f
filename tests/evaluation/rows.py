"""Result files made by hand: what `evaluate` would write, but for what no report reads."""

from voco_llama.evaluation.results import write_result

FULL = {"GQA": 1.0, "POPE": 1.0, "MME": 400.0, "MMBench": 100.0, "SQA": 1.0, "VQAv2": 1.0}


def write_row(folder, row, values, condition="voco", num_voco=None, seed=0, **changes):
    """A row's result on benchmarks; questions differ between seeds, as worlds do."""
    benchmarks = {
        name: {
            "metric": "m",
            "value": value,
            "full": FULL[name],
            "accuracy": value / FULL[name],
            "questions": 10,
            "images": 5,
            "data_fingerprint": f"{name} questions of world {seed}",
            "details": {},
        }
        for name, value in values.items()
    }
    result = {
        "condition": condition,
        "num_voco": num_voco,
        "seed": seed,
        "limit": None,
        "benchmarks": benchmarks,
        "mean_accuracy": sum(d["accuracy"] for d in benchmarks.values()) / len(benchmarks),
        "tokens_per_image": num_voco or 16,
        "kv_bytes_per_image": 1000 * (num_voco or 16),
        "kv_dtype": "float32",
        "checkpoint_fingerprint": "upper's",
        **changes,
    }
    return write_result(folder, "benchmarks", row, result, [])


def write_clips(folder, row, in_order, shuffled, seed=0, **changes):
    result = {
        "num_voco": 2,
        "num_frames": 4,
        "seed": seed,
        "limit": None,
        "in_order": in_order,
        "shuffled": shuffled,
        "questions": 20,
        "tokens_per_clip": 8,
        "kv_bytes_per_clip": 8192,
        "kv_dtype": "float32",
        **changes,
    }
    return write_result(folder, "clips", row, result, [])


def write_text(folder, row, rates, seed=0, **changes):
    """`rates`: of each text the bits a byte; four times that are the nats a token."""
    texts = {name: {"bits_per_byte": rate, "nats_per_token": 4 * rate} for name, rate in rates.items()}
    mean = sum(rates.values()) / len(rates)
    result = {
        "window": 512,
        "stride": 256,
        "vocabulary": 100,
        "dtype": "float32",
        "data_fingerprint": "texts",
        "seed": seed,
        "limit": None,
        "texts": texts,
        "bits_per_byte": mean,
        "nats_per_token": 4 * mean,
        "checkpoint_fingerprint": "text's",
        **changes,
    }
    return write_result(folder, "text", row, result, [])


def write_bounds(folder, seed=0, upper=0.9, lower=0.4):
    """Both bounds of a seed, on GQA and POPE."""
    write_row(folder, "upper", {"GQA": upper, "POPE": upper}, "full", seed=seed)
    write_row(folder, "lower", {"GQA": lower, "POPE": lower}, num_voco=1, seed=seed)
