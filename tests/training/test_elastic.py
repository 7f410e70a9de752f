"""Elastic numbers of VoCo tokens: drawn purely, the same however a batch is divided, and after a resume."""

import pytest
import torch

from tests.training.conftest import losses
from voco_llama.layout import HostRows
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.training.elastic import ElasticDraw
from voco_llama.training.run import train

ELASTIC = ("compression.num_voco=4", "compression.num_voco_choices=[1,2,4]", "trainer.max_steps=4")


def curve_of(settings) -> list[float]:
    return losses(train(settings).parent)


def test_the_numbers_are_a_function_of_seed_and_step():
    draw = ElasticDraw((1, 2, 4), "row", 64, seed=3)
    assert draw(5, 0, 64).tolist() == ElasticDraw((1, 2, 4), "row", 64, seed=3)(5, 0, 64).tolist()
    assert draw(5, 0, 64).tolist() != draw(6, 0, 64).tolist()
    assert draw(5, 0, 64).tolist() != ElasticDraw((1, 2, 4), "row", 64, seed=4)(5, 0, 64).tolist()
    assert draw(5, 0, 64).shape == (1, 64)
    assert set(draw(5, 0, 64)[0].tolist()) == {1, 2, 4}
    assert draw(5, 0, 64).dtype == torch.int64


def test_each_number_is_drawn_as_often():
    draw = ElasticDraw((1, 4, 16), "row", 30, seed=0)
    drawn = torch.cat([draw(step, 0, 30) for step in range(200)], dim=1)
    shares = [float((drawn == n).float().mean()) for n in (1, 4, 16)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_parts_of_a_global_batch_get_its_numbers():
    draw = ElasticDraw((1, 2, 4), "row", 12, seed=0)
    assert draw(7, 4, 8).tolist() == draw(7, 0, 12)[:, 4:].tolist()


def test_a_whole_batch_may_share_one_number():
    draw = ElasticDraw((1, 2, 4), "batch", 12, seed=0)
    numbers = [draw(step, 0, 12).unique().tolist() for step in range(50)]
    assert all(len(number) == 1 for number in numbers)
    assert {number for (number,) in numbers} == {1, 2, 4}


@pytest.mark.parametrize("draw", ["row", "batch"])
def test_accumulation_does_not_change_the_curve(settings_for, tmp_path, draw):
    whole, divided = (
        curve_of(
            settings_for(
                "toy/voco_1", *ELASTIC, f"compression.draw={draw}", *division, f"output_dir={tmp_path}/{len(division)}"
            )
        )
        for division in ((), ("trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=2"))
    )
    assert divided == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("readings", [2, 3, 4])
def test_several_readings_are_through_the_fewest_the_most_and_others_between(readings):
    draw = ElasticDraw((8, 1, 4, 2, 16), "row", 40, seed=0, readings=readings)
    numbers = draw(3, 0, 40)
    assert numbers.shape == (readings, 40)
    assert [numbers[0].unique().tolist(), numbers[-1].unique().tolist()] == [[1], [16]]
    assert (numbers.diff(dim=0) > 0).all()
    if readings > 2:
        between = torch.cat([draw(step, 0, 40)[1:-1].flatten() for step in range(100)])
        assert [float((between == n).float().mean()) for n in (2, 4, 8)] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert draw(3, 7, 9).tolist() == numbers[:, 7:16].tolist()


def test_all_rows_of_a_batch_may_share_the_numbers_between():
    numbers = ElasticDraw((1, 2, 4, 8), "batch", 6, seed=0, readings=3)(1, 0, 6)
    assert [len(reading.unique()) for reading in numbers] == [1, 1, 1]


READINGS = (*ELASTIC, "compression.readings=3")


@pytest.mark.parametrize("overrides", [ELASTIC, READINGS])
def test_rows_are_trained_with_the_numbers_drawn(settings_for, monkeypatch, overrides):
    seen = []
    original = VoCoLlama.forward

    def watch(self, *, rows: HostRows, **kwargs):
        fields = rows.fields
        segments = (fields["segment"].diff(dim=1, prepend=fields["segment"][:, :1] * 0) > 0).sum(dim=1)
        seen.append((fields["voco"].sum(dim=1), segments, fields["labels"]))
        return original(self, rows=rows, **kwargs)

    monkeypatch.setattr(VoCoLlama, "forward", watch)
    settings = settings_for("toy/voco_1", *overrides)
    train(settings)
    readings = settings.compression.readings
    draw = ElasticDraw((1, 2, 4), "row", 8, settings.seed, readings)
    for step, (voco, segments, labels) in enumerate(seen):
        assert voco.tolist() == (draw(step, 0, 8).flatten() * segments).tolist()
        assert (labels >= 0).sum(dim=1).view(readings, 8).unique(dim=0).shape[0] == 1
    assert len(seen) == 4


def test_the_loss_of_several_readings_is_their_mean(settings_for, tmp_path):
    """That of the first step, before any weight has changed."""
    ways = (
        ["compression.num_voco=1"],
        ["compression.num_voco=4"],
        ["compression.num_voco=4", "compression.num_voco_choices=[1,4]", "compression.readings=2"],
    )
    one, four, both = (
        curve_of(settings_for("toy/voco_1", *way, "trainer.max_steps=1", f"output_dir={tmp_path}/{number}"))
        for number, way in enumerate(ways)
    )
    assert both == pytest.approx([(one[0] + four[0]) / 2], rel=1e-5)
    assert one != pytest.approx(four, rel=1e-4)


@pytest.mark.parametrize("overrides", [(), ("two_steps=false",)])
def test_readings_are_divided_as_rows_are(settings_for, tmp_path, overrides):
    whole, divided = (
        curve_of(settings_for("toy/voco_1", *READINGS, *overrides, *division, f"output_dir={tmp_path}/{len(division)}"))
        for division in ((), ("trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=2"))
    )
    assert divided == pytest.approx(whole, rel=1e-5)


def test_a_killed_elastic_run_goes_on_to_the_same_curve(settings_for, killed_and_gone_on, tmp_path):
    overrides = (*ELASTIC, "trainer.save_strategy=steps", "trainer.save_steps=2")
    whole = curve_of(settings_for("toy/voco_1", *overrides, f"output_dir={tmp_path}/whole"))
    again = killed_and_gone_on(settings_for("toy/voco_1", *overrides))
    assert losses(again.parent) == whole
