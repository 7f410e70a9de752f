"""Contradictions and missing paths, each one clear line, before anything is loaded."""

import json
import re

import pytest

from voco_llama.choices import PARTS
from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.training.checks import check_settings
from voco_llama.training.stages import MODULES

ZERO = "trainer.deepspeed.zero_optimization"
FSDP = "trainer.fsdp_config"
TABLE = "data.sources=[{format: hf_dataset, file: rows.parquet}]"
STREAM = ("data.streaming=true", "data.grouping=none")
RANDOM_WEIGHTS = ("model.language.pretrained=null", "model.language.config=some/folder")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compression.num_voco=0"], "compression.num_voco is 0, but under condition voco it must be at least 1"),
        (["stage=instruct", "compression=full", "compression.num_voco=-1"], "num_voco is -1"),
        (["compression=full"], "stage voco trains compression, but compression.condition is full"),
        (["compression.num_voco_choices=[]"], "compression.num_voco_choices is []: give numbers from 1 to"),
        (["compression.num_voco_choices=[0,1]"], "compression.num_voco_choices is [0, 1]"),
        (["compression.num_voco_choices=[1,2]"], "give numbers from 1 to compression.num_voco (1)"),
        (["compression=elastic_16", "compression.readings=6"], "compression.readings is 6: give 1 to 5, as many as"),
        (["compression=elastic_16", "compression.readings=0"], "compression.readings is 0: give 1 to 5, as many as"),
        (["experiment=toy/readings", "compression=voco_4"], "compression.readings is 3, and nothing is drawn: set"),
        (["compression=elastic_16", "compression.num_voco=32"], "(32), and that number among them"),
        (
            ["stage=instruct", "compression=full", "compression.num_voco_choices=[1]"],
            "compression.num_voco_choices is for condition voco",
        ),
        (["compression.draw=token"], "compression.draw is 'token': choose one of row, batch"),
        (["compression.segment_attention=both"], "choose one of causal, bidirectional, independent"),
        (["compression.voco_embeddings=own"], "choose one of shared, distinct"),
        (["compression.compressor=pooling"], "choose one of language_model, average_pool, q_former"),
        (
            ["stage=instruct", "compression=average_pool_1", "compression.condition=full"],
            "average_pool compresses outside the language model: it has no condition full",
        ),
        (["compression=q_former_1", "compression.num_voco_choices=[1]"], "set num_voco_choices to null"),
        (["compression=q_former_1", "compression.segment_attention=bidirectional"], "leave segment_attention=causal"),
        (["compression=average_pool_1", "compression.voco_embeddings=distinct"], "voco_embeddings=shared"),
        (["compression=q_former_1", "compression.q_former.layers=0"], "compression.q_former.layers is 0: give 1"),
        (["compression=q_former_1", "compression.q_former.heads=5"], "5 heads do not divide a width of 768"),
        (["stage.trains=[eyes]"], "stage.trains names 'eyes': choose from vision, projector, language"),
        (["stage.trains=[]"], "stage.trains is empty"),
        (["stage.trains=[vision,projector]"], "the vision tower trains in stage clip, and only there"),
        (["stage=clip", "model=llava_7b"], "stage clip trains a tiny tower from scratch"),
        (["stage=clip", "model.vision.name=tiny.json", "model.tokenizer=null"], "set model.tokenizer"),
        (
            ["model.attention=flash_attention_2", "two_steps=false"],
            "use sdpa, eager or flex_attention, or train in two",
        ),
        (
            ["two_steps=true", "compression=full", "stage=instruct", "prompt.order=llava"],
            "prompt.order=llava: a row has text before",
        ),
        (["model.attention=flash_attention_2", "compression.segment_attention=bidirectional"], "causal: set"),
        (
            ["model.attention=flash_attention_2", "loss=kl", "loss.teacher_checkpoint=x", "prompt.order=inline"],
            "the mask under which the teacher reads text before an image",
        ),
        (["trainer.use_liger_kernel=true", "trainer.liger_kernel_config=[1]"], "liger_kernel_config is"),
        (["model.language.config=some/folder"], "set exactly one of model.language.pretrained"),
        (["model.language.pretrained=null"], "set exactly one of model.language.pretrained"),
        ([*RANDOM_WEIGHTS, "model.tokenizer=null"], "brings no tokenizer: set model.tokenizer"),
        (["model.vision.name=a.json", "model.vision.pretrained=openai"], "set model.vision.pretrained to null"),
        (["data.sources=[]"], "data.sources is empty"),
        (["data.sources.0.weight=0"], "data.sources.0.weight is 0"),
        (["data.sources.0.limit=0"], "data.sources.0.limit is 0"),
        (["data.keep_in_memory=true"], "set trainer.dataloader_num_workers=0"),
        (["hardware.utilization=40"], "hardware.utilization is 40: give a part of gpu_tflops, as 0.4 for 40 %"),
        (["data.share_media=0"], "data.share_media is 0: give 1 or more"),
        (
            ["data.share_media=4", "trainer.per_device_train_batch_size=6"],
            "trainer.per_device_train_batch_size is 6, which data.share_media=4 does not divide",
        ),
        ([TABLE, *STREAM, "data.share_media=2"], "would read everything for which rows look at the same image"),
        (["data.streaming=true"], "is not streamed, only hf_dataset (Parquet) is"),
        ([TABLE, "data.streaming=true", "data.grouping=length"], "set data.grouping=none"),
        (
            [TABLE, *STREAM, "data.keep_in_memory=true", "trainer.dataloader_num_workers=0"],
            "data.streaming and data.keep_in_memory contradict",
        ),
        (
            [TABLE, *STREAM, "stage=clip", "model.vision.name=tiny.json", "model.checkpoint=null"],
            "stage clip trains on the toy world: set data.streaming=false",
        ),
        ([TABLE, *STREAM, "data.shuffle_buffer=0"], "data.shuffle_buffer is 0: give 1 or more"),
        (["data.max_length=0"], "data.max_length is 0"),
        (["trainer.learnin_rate=1"], "'trainer.learnin_rate'; did you mean 'learning_rate'"),
        (["trainer.seed=1"], "decided by the setting seed"),
        (["trainer.output_dir=x"], "decided by the setting output_dir"),
        (["trainer.train_sampling_strategy=group_by_length"], "decided by the setting data.grouping"),
        (["trainer.eval_strategy=steps"], "no evaluation set"),
        (["trainer.bf16=true", "trainer.fp16=true"], "choose one"),
        (["trainer=zero2", f"{ZERO}.stage=4"], "stage is 4: give 1, 2 or 3"),
        (["trainer=zero2", "trainer.deepspeed.zero_optimization=null"], "stage is None"),
        (["trainer=zero2", "+trainer.deepspeed.optimizer.type=SGD"], "deepspeed.optimizer would take the place of"),
        (["trainer=zero2", "+trainer.deepspeed.scheduler.type=WarmupLR"], "deepspeed.scheduler would take the place"),
        (["trainer=zero2", "trainer.deepspeed.gradient_clipping=5.0"], "gradient_clipping is 5.0: give auto"),
        (["trainer=zero2", "trainer.deepspeed.gradient_clipping=null"], "gradient_clipping is None: give auto"),
        (["trainer=zero2", f"{ZERO}.stage3_prefetch_bucket_size=auto"], "is for stage 3, but stage is 2"),
        (["trainer=zero2", f"{ZERO}.overlap_com=true"], "did you mean 'overlap_comm'"),
        (
            ["trainer=zero3", "model.checkpoint=x", f"{ZERO}.stage3_gather_16bit_weights_on_model_save=false"],
            "must be true",
        ),
        (["trainer=zero3", *RANDOM_WEIGHTS], "random weights"),
        (["trainer=zero2", "optimizer=muon"], "optimizer=muon needs whole matrices"),
        (["trainer=fsdp2", "optimizer=muon"], "optimizer=muon needs whole matrices"),
        (["trainer.fsdp=full_shard"], "version is None, and FSDP1 is not supported: use trainer=fsdp2"),
        (["trainer=fsdp2", f"{FSDP}.version=1"], "version is 1, and FSDP1 is not supported: use trainer=fsdp2"),
        (["trainer=fsdp2", "trainer.fsdp=full_shard offload"], "trainer.fsdp is full_shard offload: give full_shard"),
        (["trainer=fsdp2", f"{FSDP}.cpu_offload=true"], "cpu_offload is not supported: use trainer=zero3_offload"),
        (["trainer=fsdp2", f"{FSDP}.activation_checkpointing=true"], "set trainer.gradient_checkpointing"),
        (["trainer=fsdp2", f"{FSDP}.reshard_after_forwards=true"], "did you mean 'reshard_after_forward'"),
        (["trainer=fsdp2", f"{FSDP}.reshard_after_forward=no"], "reshard_after_forward is no: give true or false"),
        (["trainer=fsdp2", *RANDOM_WEIGHTS], "random weights"),
        (["stage=clip", "model.vision.name=tiny.json", "trainer=fsdp2"], "FSDP would cut its weights: set trainer=cpu"),
        (
            ["stage=clip", "model.vision.name=tiny.json", "optimizer=muon"],
            "optimizer=muon is for language models: set optimizer=trainer",
        ),
        (["optimizer=adam"], "optimizer is 'adam': choose one of trainer, muon"),
        (["projector_learning_rate=0"], "projector_learning_rate is 0.0: give a number above 0"),
        (["stage=language", "projector_learning_rate=1e-3"], "in a stage that trains the projector, or null"),
        (["trainer.deepspeed=nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_contradictions(overrides, message):
    with pytest.raises(SettingsError) as raised:
        check_settings(compose(overrides), paths=False)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def disk(tmp_path):
    """Overrides that name files and folders, all there."""
    for folder in ("images", "language", "tokenizer", "final"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rows.json").write_text("[]")
    vision = {"vision_cfg": {"image_size": 32, "patch_size": 8}}
    (tmp_path / "tiny.json").write_text(json.dumps(vision))
    (tmp_path / "final" / "config.json").write_text(json.dumps({"vision_config": vision}))
    return {
        "data.sources.0.file": tmp_path / "rows.json",
        "data.sources.0.media_folder": tmp_path / "images",
        "model.vision.name": tmp_path / "tiny.json",
        "model.language.pretrained": tmp_path / "language",
        "model.tokenizer": tmp_path / "tokenizer",
        "output_dir": tmp_path / "run",
    }


def as_overrides(values):
    return ["data=toy_captions", *(f"{key}={value}" for key, value in values.items())]  # data of one source


def test_what_is_there_passes(disk, tmp_path):
    check_settings(compose(as_overrides(disk)))
    check_settings(compose(as_overrides(disk | {"model.checkpoint": tmp_path / "final"})))


def test_a_set_on_the_hub_is_no_path(disk):
    on_hub = disk | {"data.sources.0.file": "owner/name"}
    check_settings(compose([*as_overrides(on_hub), "data.sources.0.format=hf_dataset"]))
    for file, format in (("owner/name", "llava_json"), ("owner/rows.parquet", "hf_dataset")):
        missing = disk | {"data.sources.0.file": file}
        with pytest.raises(SettingsError, match=f"data.sources.0.file: {file} does not exist"):
            check_settings(compose([*as_overrides(missing), f"data.sources.0.format={format}"]))


@pytest.mark.parametrize(
    "key",
    [
        "data.sources.0.file",
        "data.sources.0.media_folder",
        "model.vision.name",
        "model.language.pretrained",
        "model.tokenizer",
        "model.checkpoint",
    ],
)
def test_a_missing_path_is_named(disk, tmp_path, key):
    missing = tmp_path / "no" / "such" / "thing.json"
    with pytest.raises(SettingsError, match=rf"^{key}: .*thing.json does not exist"):
        check_settings(compose(as_overrides(disk | {key: missing})))


def test_archives_in_place_of_folders(disk, tmp_path):
    (tmp_path / "images.zip").touch()
    archives = (
        f"++data.sources.0.archives={{coco: {tmp_path}/images.zip, vg: [{tmp_path}/images.zip, {tmp_path}/gone.zip]}}"
    )
    check_settings(compose(as_overrides(disk | {"data.sources.0.media_folder": tmp_path / "images.zip"})))
    with pytest.raises(SettingsError, match=r"^data.sources.0.archives.vg: .*gone.zip does not exist"):
        check_settings(compose([*as_overrides(disk), archives]))
    with pytest.raises(SettingsError, match=r"^data.sources.0.archives.vg: 'folder' names what is no .zip or .tar"):
        check_settings(compose([*as_overrides(disk), "++data.sources.0.archives={vg: folder}"]), paths=False)


def test_the_hint_for_a_missing_world(tmp_path):
    with pytest.raises(SettingsError, match=r"make the toy world first: voco-llama toyworld$"):
        check_settings(compose([f"paths.toyworld={tmp_path / 'world'}"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("++trainer.max_step=4", "'trainer.max_step'; did you mean 'max_steps'"),
        ("trainer.max_steps=four", "trainer.max_steps is 'four': give a whole number"),
        ("trainer.report_to=wandbb", "'wandbb' is no tracker"),
    ],
)
def test_the_settings_are_looked_at_before_the_disk(tmp_path, override, message):
    for missing in (f"model.checkpoint={tmp_path}/gone", "model.checkpoint=null"):
        with pytest.raises(SettingsError, match=message):
            check_settings(compose([f"paths.toyworld={tmp_path / 'world'}", missing, override]))


def test_a_tower_of_open_clip_by_a_mistyped_name(disk):
    for name, message in (
        ("ViT-L-14x", r"^model.vision.name: open_clip has no model 'ViT-L-14x', and .* did you mean 'ViT-L-14'\?$"),
        ("ViT-L-14", "'?ViT-L-14'? does not exist .*; of a tower of open_clip name the weights too"),
    ):
        with pytest.raises(SettingsError, match=message):
            check_settings(compose(as_overrides(disk | {"model.vision.name": name})))


def test_more_that_is_not_there(disk, tmp_path):
    for values, message in (
        ({"model.checkpoint": tmp_path / "images"}, "holds no config.json: name the folder `final` of a finished run"),
        ({"model.vision.name": tmp_path / "images"}, "holds no open_clip_config.json or config.json; train stage clip"),
        ({"resume": tmp_path / "images"}, "is no checkpoint of a run"),
        ({"output_dir": tmp_path / "rows.json"}, "is a file, not a folder"),
    ):
        with pytest.raises(SettingsError, match=message):
            check_settings(compose(as_overrides(disk | values)))


def test_more_voco_tokens_than_vision_tokens(disk, tmp_path):
    check_settings(compose([*as_overrides(disk), "compression.num_voco=16"]))
    for values in (disk, disk | {"model.checkpoint": tmp_path / "final"}):
        with pytest.raises(SettingsError, match="num_voco is 17, but an image has only 16 vision tokens"):
            check_settings(compose([*as_overrides(values), "compression.num_voco=17"]))
    architecture = disk | {"model.vision.name": "ViT-L-14-336-quickgelu", "model.vision.pretrained": "openai"}
    with pytest.raises(SettingsError, match="an image has only 576 vision tokens"):
        check_settings(compose([*as_overrides(architecture), "compression.num_voco=577"]))


@pytest.mark.parametrize(
    ("overrides", "fits", "message"),
    [
        ([], 19, "data.max_length is 18, but 1 segment of 17 tokens is 17: raise it"),
        (["stage=video", "data.num_frames=3", "compression.num_voco=2"], 56, "3 segments of 18 tokens are 54"),
        (["stage=video", "data.num_frames=3", "compression=average_pool_1"], 5, "3 segments of 1 token are 3"),
    ],
)
def test_rows_have_room_for_their_segments(disk, overrides, fits, message):
    """An image of the little tower has 16 vision tokens."""
    check_settings(compose([*as_overrides(disk), *overrides, f"data.max_length={fits}"]))
    with pytest.raises(SettingsError, match=re.escape(message)):
        check_settings(compose([*as_overrides(disk), *overrides, f"data.max_length={fits - 1}"]))


def test_every_part_that_can_be_named_has_its_modules():
    assert tuple(MODULES) == PARTS
