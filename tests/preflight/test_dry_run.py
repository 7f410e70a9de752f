"""A dry run: of the toy world against a real training, of the 7B configurations on every machine that they ship for."""

import dataclasses
import re
import shutil
import socket
import time

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from voco_llama import cli, hub
from voco_llama.composition import compose
from voco_llama.config_files import CONFIG_DIR
from voco_llama.data import kept_tables
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.preflight import plan as plan_module
from voco_llama.preflight.dry_run import dry_run, format_dry_run
from voco_llama.preflight.finding import run_checks
from voco_llama.preflight.memory import estimate
from voco_llama.preflight.plan import memory_plan, verdict, what_fits
from voco_llama.preflight.shapes import meta_model
from voco_llama.preflight.training import training_checks
from voco_llama.training.batch import GlobalBatch, world_size
from voco_llama.training.build import build_or_load, build_processor, open_mixture
from voco_llama.training.checks import segments_a_row
from voco_llama.training.inputs import list_inputs
from voco_llama.training.run import train
from voco_llama.training.stages import count_parameters, set_trainable

ALIGNMENTS = ("align_7b", "align_lcs_7b")
EXPERIMENTS = [*sorted(file.stem for file in (CONFIG_DIR / "experiment").glob("*.yaml")), "voco_128"]
OTHER_MODELS = ("vicuna_13b", "llama3_70b", "qwen3_8b", "mistral_7b")
OF_OTHER_MODELS = [f"{model}/{stage}" for model in OTHER_MODELS for stage in ("align", "instruct", "voco_4")]
HARDWARE = sorted(file.stem for file in (CONFIG_DIR / "hardware").glob("*.yaml"))
RAISES_THE_BATCH, OFFLOADS = "gpus_512x80gb", "gpus_8x80gb_offload"

WRITTEN_FOR = "gpus_8x80gb"
ONE_SMALL_GPU = "gpu_1x24gb"
SMALL = ("align", "instruct", "voco_1", "voco_16", "average_pool_1", "q_former_1", "elastic")
SMALL_MODELS = ("smollm2_135m", "smollm2_360m", "qwen3_0.6b")


def is_for(hardware: str, experiment: str) -> bool:
    """Adapters are for trained language models, a whole model on one GPU is for alignment, offloading is for 70B.

    On many GPUs a few stand for the others, whose dry run on eight counts these too.
    """
    if hardware in ("gpus_64x80gb", RAISES_THE_BATCH):
        return experiment in ("voco", "video_7b", *ALIGNMENTS)
    if hardware in (OFFLOADS, ONE_SMALL_GPU):
        return False
    return not hardware.startswith("gpu_1") or hardware.endswith("_lora") == (experiment not in ALIGNMENTS)


def rows_of(experiment: str, hardware: str | None) -> int:
    """Of a step: the recipe's, or a row for each GPU where these are more."""
    return 512 if hardware == RAISES_THE_BATCH else 256 if experiment in ALIGNMENTS else 128


RUNS_7B = [
    (experiment, None if hardware == WRITTEN_FOR else hardware)
    for experiment in EXPERIMENTS
    for hardware in HARDWARE
    if is_for(hardware, experiment)
]


def composed(experiment, hardware=None, *overrides):
    return compose([f"experiment={experiment}", *([f"hardware={hardware}"] if hardware else []), *overrides])


def no_network(*args, **kwargs):
    raise AssertionError("a dry run reached for the network")


@pytest.mark.slow
def test_every_7b_run_on_all_hardware_fits_and_keeps_its_recipe(monkeypatch, tmp_path):
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    slowest = 0.0
    for experiment, hardware in RUNS_7B:
        started = time.perf_counter()
        run = dry_run(composed(experiment, hardware))
        slowest = max(slowest, time.perf_counter() - started)
        assert run.batch.size == rows_of(experiment, hardware), (experiment, hardware)
        assert run.memory.fits, (experiment, hardware, verdict(run.memory))
        assert hardware is not None or all(scale.memory.fits for scale in run.scales.each), experiment
        assert run.shapes["loss"] == ()
        assert len(run.shapes["logits of a chunk"]) == 2
        assert run.epoch.rows is not None or experiment == "video_7b"
        assert format_dry_run(run)
    assert slowest < 60  # the promise is two minutes on a laptop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "hardware"),
    [
        *((experiment, None) for experiment in OF_OTHER_MODELS),
        *((f"{model}/voco_4", "gpus_8x40gb") for model in OTHER_MODELS if model != "llama3_70b"),
        ("llama3_70b/voco_4", OFFLOADS),
        ("llama3_70b/align", OFFLOADS),
    ],
)
def test_other_language_models_fit_where_they_are_planned(experiment, hardware):
    run = dry_run(composed(experiment, hardware))
    assert run.batch.size == (256 if experiment.endswith("align") else 128)
    assert run.memory.fits, verdict(run.memory)
    assert run.epoch.rows is not None
    assert sum("published shape" in note for note in run.notes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL_MODELS)
def test_the_small_experiments_fit_one_gpu_and_say_their_hours(model, monkeypatch, tmp_path):
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in SMALL:
        settings = composed(f"small/{name}", None, f"model={model}")
        assert settings == composed(f"small/{name}", ONE_SMALL_GPU, f"model={model}")
        run = dry_run(settings)
        assert (run.batch.size, run.batch.processes) == (256 if name == "align" else 128, 1)
        assert run.memory.fits, verdict(run.memory)
        assert 1 < run.scales.planned.gpu_hours < 48, name
        assert "GPU hours (their price" in format_dry_run(run)


@pytest.mark.parametrize(
    ("experiment", "language", "head_dim"),
    [
        ("small/voco_4", 134_515_008 + 2 * 576, 64),
        ("small/voco_4 model=smollm2_360m", 361_821_120 + 2 * 960, 64),
        ("small/voco_4 model=qwen3_0.6b", 596_049_920 + 2 * 1024, 128),
        ("vicuna_13b/voco_4", 13_015_864_320 + 2 * 2 * 5120, 128),
        ("llama3_70b/voco_4", 70_553_706_496 + 2 * 2 * 8192, 128),
        ("qwen3_8b/voco_4", 8_190_735_360 + 2 * 2 * 4096, 128),
        ("mistral_7b/voco_4", 7_241_732_096 + 2 * 2 * 4096, 128),
    ],
)
def test_other_language_models_have_their_published_parameters(experiment, language, head_dim):
    """And two words in two tables, or in one that is tied; nothing of their size is built."""
    name, *more = experiment.split()
    meta = meta_model(composed(name, None, *more))
    assert {count.module: count.trained for count in meta.table}["language_model"] == language
    assert (meta.decoder.head_dim, meta.decoder.norms_heads) == (head_dim, "qwen3" in experiment)
    assert all(parameter.is_meta for parameter in meta.model.parameters())


def test_the_hardware_that_experiments_are_written_for():
    assert composed("voco_1") == composed("voco_1", WRITTEN_FOR)


@pytest.mark.parametrize(
    ("experiment", "hardware"),
    [run for run in RUNS_7B if run[1] is None or run[0] in ("voco", *ALIGNMENTS)],
)
def test_the_global_batch_is_the_recipes(experiment, hardware):
    settings = composed(experiment, hardware)
    assert GlobalBatch.of(settings).size == settings.global_batch_size
    assert settings.global_batch_size == rows_of(experiment, hardware)


def test_numbers_of_the_papers_row():
    run = dry_run(composed("voco_1"))
    language = 6_738_415_616 + 2 * 2 * 4096  # Llama-2-7B, and two words in two tables
    assert [(count.module, count.trained, count.frozen) for count in run.parameters] == [
        ("vision", 0, 304_293_888),
        ("language_model", language, 0),
        ("projector", 1024 * 4096 + 4096 + 4096 * 4096 + 4096, 0),
    ]
    assert run.segment == (576, 1)
    assert (run.batch.processes, run.batch.rows, run.batch.accumulation) == (8, 8, 2)
    assert run.shapes["mask"] == (8, 1, 2048, 2048)
    assert run.shapes["logits of a chunk"] == (1024, 32002)
    assert run.memory.plan.work.trained_tokens == 8 * (2048 - 577)
    per_epoch = -(-(665298 // 64) // 2)
    assert (run.length.steps_an_epoch, run.length.steps) == (per_epoch, 2 * per_epoch)
    assert run.length.warmup == -(-3 * 2 * per_epoch // 100)
    rates = dict(run.length.learning_rates)
    assert (rates[0], rates[run.length.warmup], rates[run.length.steps]) == (0.0, 2e-5, pytest.approx(0.0))
    assert run.tokens_a_step == (128 * 2048, 128 * (577 + 770 / 4))
    everything, trained = language + 304_293_888 + 20_979_712, language + 20_979_712
    assert run.saved.final == 2 * everything
    assert run.saved.checkpoint == 4 * everything + 12 * trained
    assert run.saved.kept == 3
    assert any("published shape" in note for note in run.notes)
    assert any(note.startswith("data.sources.0.file: data/LLaVA") for note in run.notes)


@pytest.mark.slow
def test_ways_of_compressing_and_losses_are_walked():
    pooled = dry_run(composed("average_pool_1"))
    assert pooled.segment == (0, 1)
    assert pooled.shapes["compressed"] == (8, 1, 1024)
    assert pooled.shapes["trained tokens"] == (8 * 2047, 4096)
    overrides = ("loss=kl", "loss.teacher_checkpoint=upper")
    distilled = dry_run(composed("voco_1", None, *overrides))
    weights = distilled.memory.estimate.of("weights"), dry_run(composed("voco_1")).memory.estimate.of("weights")
    assert weights[0] == pytest.approx(2 * weights[1], abs=1)


def test_adapters_are_walked():
    run = dry_run(composed("voco_1", "gpu_1x80gb_lora"))
    assert {count.module: count.trained for count in run.parameters}["language_model"] == 319_815_680 + 4096
    assert (run.batch.processes, run.batch.accumulation) == (1, 32)


@pytest.fixture
def toy(settings_for):
    """Every image in two sources, for records to share it."""
    overrides = ("trainer.max_steps=-1", "trainer.num_train_epochs=2", "compression=voco_2", "data.share_media=2")
    settings = settings_for("toy/instruct", *overrides)
    settings.data.sources *= 2
    return settings


def test_the_toy_world_is_counted_as_it_is_trained(toy, tmp_path):
    run = dry_run(toy)
    assert not (tmp_path / "run").exists()
    mixture = open_mixture(toy)
    assert (run.epoch.rows, run.epoch.images) == (len(mixture), int(mixture.media.sum()))
    assert run.epoch.encoded == run.epoch.images / 2
    assert f"of which {run.images_a_step[1]:,} are computed" in format_dry_run(run)
    model, processor = build_or_load(toy)
    set_trainable(model, toy.stage.trains)
    assert list(run.parameters) == count_parameters(model)
    assert run.segment == (processor.num_vision, processor.num_voco)
    assert [note.split(" is ")[0] for note in run.notes] == ["optimizer muon"]
    train(toy)
    result = (tmp_path / "run" / "result.json").read_text()
    assert f'"steps": {run.length.steps},' in result
    weights = sum(file.stat().st_size for file in (tmp_path / "run" / "final").glob("*.safetensors"))
    assert run.saved.final == pytest.approx(weights, rel=0.05)  # and the file's head


def test_no_index_is_begun(settings_for, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_tables, "SMALLEST_KEPT", 0)
    settings = settings_for("toy/instruct", f"data.index_folder={tmp_path}/index")
    assert dry_run(settings).epoch.rows
    assert not list(tmp_path.iterdir())


def test_inputs_of_data_are_files_archives_and_names_of_the_hub(monkeypatch, tmp_path):
    (tmp_path / "a.zip").write_text("")
    settings = composed("voco_1", None, f"+data.sources.0.archives={{coco/: {tmp_path}/a.zip, gqa: [b.zip]}}")
    assert {
        (entry.key.removeprefix("data.sources.0."), entry.is_here)
        for entry in list_inputs(settings)
        if entry.part == "data"
    } == {
        ("file", False),
        ("media_folder", False),
        ("archives.coco", True),
        ("archives.gqa", False),
    }
    settings = composed("voco_1", None, "data.sources=[{format: hf_dataset, file: some/set}]")
    (entry,) = (entry for entry in list_inputs(settings) if entry.part == "data")
    assert (entry.is_hub, entry.is_here, entry.hub) == (True, False, "dataset")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "datasets--some--set").mkdir()
    (entry,) = (entry for entry in list_inputs(settings) if entry.part == "data")
    assert entry.is_here
    assert dry_run(settings).epoch.rows is None  # it is not opened: that may reach for the network


def test_tokens_of_the_data_are_about_those_of_its_rows(toy):
    run, mixture, processor = dry_run(toy), open_mixture(toy), build_processor(toy)
    lengths = [len(mixture.try_load(index, processor.row)["input_ids"]) for index in range(len(mixture))]
    assert run.epoch.tokens == pytest.approx(sum(lengths), rel=0.5)  # characters / 4; these words are shorter


def test_processes_are_torchruns_before_the_settings(toy, monkeypatch):
    settings = dataclasses.replace(toy, hardware=dataclasses.replace(toy.hardware, num_processes=2))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert [dry_run(each).batch.processes for each in (toy, settings)] == [1, 2]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert dry_run(settings).batch.size == 4 * 8
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(SettingsError, match="WORLD_SIZE is 'four'"):
        world_size()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.per_device_train_batch_size=12"], "global_batch_size is 128, which 8 processes of 12 rows do not"),
        (["trainer.per_device_train_batch_size=32"], "or set global_batch_size to a multiple of 256"),
        (["trainer.per_device_train_batch_size=0"], "trainer.per_device_train_batch_size is 0"),
        (["trainer.gradient_accumulation_steps=2"], "is decided by the setting global_batch_size"),
        (["data.max_length=500"], "data.max_length is 500, but 1 segment of 577 tokens is 577"),
        (["model.language.pretrained=some/thing"], "names the whole model: set model.checkpoint=null"),
        (
            ["model.checkpoint=null", "model.language.pretrained=some/thing"],
            "the shape of some/thing is not known here",
        ),
        (
            ["model.checkpoint=null", "model.language.pretrained=/nope"],
            "error: model.language.pretrained: /nope does not exist (from ",
        ),
        (
            ["model.checkpoint=null", "model.language.pretrained=/nope"],
            "; download it there, or of SmolLM2-135M: voco-llama convert-gguf output=/nope",
        ),
        (["experiment=toy/language", "paths.toyworld=nowhere"], "); make the toy world first: voco-llama toyworld"),
        (["hardware.num_processes=0"], "hardware.num_processes is 0"),
        (["trainer.lr_scheduler_type=cosin"], "trainer.lr_scheduler_type is 'cosin': choose one of linear, cosine,"),
    ],
)
def test_contradictions_are_one_line(overrides, message, capsys):
    assert cli.main(["train", "experiment=voco_1", "dry_run=true", *overrides]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.splitlines()[-1].startswith("error: ")


def test_the_video_experiment_has_room_for_its_frames():
    settings = composed("video_7b")
    assert segments_a_row(settings) == 8
    run = dry_run(settings)
    assert run.shapes["images"][0] == 8 * run.batch.rows
    assert run.length.steps is None  # a folder of clips has as many as it has
    assert "steps: unknown" in format_dry_run(run)
    assert dry_run(composed("video_7b", None, "trainer.max_steps=100")).length.steps == 100


@pytest.mark.slow
def test_what_is_not_modelled_is_said():
    assert not any("modelled" in note for note in dry_run(composed("voco_1")).notes)
    run = dry_run(composed("voco_1", None, "trainer.optim=lion_8bit"))
    assert [note.split(" ")[0] for note in run.notes if "modelled" in note] == ["optimizer"]
    assert any("muon" in note for note in plan_module.uncounted(composed("toy/instruct")))
    notes = plan_module.uncounted(composed("toy/elastic_kl_own", None, "loss.own_answer_tokens=7"))
    assert any("the time to write them is not counted; for each token of 7, each pass" in note for note in notes)
    assert any("loss.teacher=checkpoint: the time that the teacher reads is not counted" in note for note in notes)
    assert not any("teacher" in note for note in plan_module.uncounted(composed("toy/elastic_most_voco")))


def foreign_tokenizer(folder):
    """Saved in a folder: far more tokens than the toy language model has."""
    vocabulary = {f"word{index}": index for index in range(5000)} | {"<unk>": 5000, "<s>": 5001, "</s>": 5002}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def test_a_foreign_tokenizer_is_refused_as_by_train(settings_for, tmp_path):
    settings = settings_for("toy/instruct", f"model.tokenizer={foreign_tokenizer(tmp_path / 'tokenizer')}")
    line = r"^model.tokenizer and model.language: the tokenizer has 5003 tokens and the language model \d+ embeddings"
    for refuses in (build_or_load, dry_run):
        with pytest.raises(CheckpointError, match=line):
            refuses(settings)
    (finding,) = [found for found in run_checks(training_checks(settings)) if found.what == "memory estimate"]
    assert finding.level == "error"
    assert re.match(line, finding.detail)


def test_a_foreign_tokenizer_in_a_checkpoint_and_of_a_teacher_is_refused_as_by_train(settings_for, tmp_path):
    start = train(settings_for("toy/instruct", "trainer.max_steps=1"))
    foreign = foreign_tokenizer(tmp_path / "tokenizer")
    damaged = shutil.copytree(start, tmp_path / "damaged")
    for file in foreign.iterdir():
        shutil.copy(file, damaged)
    for settings in (
        settings_for("toy/voco_1", f"model.checkpoint={damaged}", f"output_dir={tmp_path / 'next'}"),
        settings_for("toy/voco_1", "loss=kl", f"loss.teacher_checkpoint={damaged}", f"output_dir={tmp_path / 'next'}"),
    ):
        for refuses in (train, dry_run):
            with pytest.raises(CheckpointError):
                refuses(settings)


def test_trackers_are_refused_as_by_train(settings_for):
    with pytest.raises(SettingsError, match="'tensorbord' is no tracker; did you mean 'tensorboard'"):
        dry_run(settings_for("toy/instruct", "trainer.report_to=tensorbord"))


def test_a_dry_run_never_trains(toy):
    with pytest.raises(SettingsError, match="dry_run=true trains nothing"):
        train(dataclasses.replace(toy, dry_run=True))


def test_the_command_prints_it_and_writes_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "experiment=align_7b", "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert "global batch: 256 rows = 8 processes x 16 rows x 2 accumulated" in printed
    assert "of 80 GB: fits" in printed
    assert list(tmp_path.iterdir()) == []


PLAIN = ("trainer.deepspeed=null", "trainer.gradient_checkpointing=false")


@pytest.mark.parametrize(
    ("experiment", "gigabytes", "overrides", "expected"),
    [
        ("voco_1", 40, (), ()),
        ("voco_1", 24, (), ("trainer.per_device_train_batch_size=4",)),
        ("voco_1", 80, ("trainer=zero2",), ()),
        ("voco_1", 30, ("trainer=zero2",), ("trainer=zero3",)),
        ("voco_1", 80, ("hardware.num_processes=1",), ("trainer=zero2", "model.lora.rank=128", "model.lora.alpha=256")),
        (
            "voco_1",
            15,
            (),
            (
                "trainer.per_device_train_batch_size=4",
                "trainer.deepspeed.zero_optimization.offload_optimizer.device=cpu",
            ),
        ),
        ("voco_1", 150, PLAIN, ("trainer.per_device_train_batch_size=4",)),
        (
            "voco_1",
            76,
            PLAIN,
            ("trainer.per_device_train_batch_size=4", "trainer.gradient_checkpointing=true"),
        ),
        ("voco_1", 19, ("trainer=fsdp2",), ("trainer.per_device_train_batch_size=1", "trainer=zero3")),
        (
            "voco_1",
            16,
            ("trainer=fsdp2",),
            ("trainer=zero3", "trainer.deepspeed.zero_optimization.offload_optimizer.device=cpu"),
        ),
        ("voco_1", 3, (), None),
    ],
)
def test_what_fits(experiment, gigabytes, overrides, expected):
    settings = composed(experiment, None, *overrides)
    plan = memory_plan(settings, meta_model(settings))
    remedy = what_fits(settings, plan, gigabytes * 10**9)
    assert (None if remedy is None else remedy.overrides) == expected
    if expected:
        assert estimate(plan).peak > gigabytes * 10**9 >= remedy.peak
        mended = composed(experiment, None, *overrides, *remedy.overrides)
        found = estimate(memory_plan(mended, meta_model(mended)))
        assert found.peak == pytest.approx(remedy.peak, rel=0.001)


def test_a_remedy_without_a_global_batch_accumulates_more():
    overrides = ("global_batch_size=null", "trainer.gradient_accumulation_steps=2", "hardware.gpu_memory_gb=24")
    memory = dry_run(composed("voco_1", None, *overrides)).memory
    assert memory.remedy.overrides == (
        "trainer.per_device_train_batch_size=4",
        "trainer.gradient_accumulation_steps=4",
    )
    assert "does not fit; " in verdict(memory)
    unknown = dry_run(composed("voco_1", None, "hardware.gpu_memory_gb=null")).memory
    assert torch.cuda.is_available() or "set hardware.gpu_memory_gb" in verdict(unknown)
