"""What is tried when a run does not fit, and what is finally proposed."""

import pytest

from negpo.plan import Settings, load_shape, make_plan
from negpo.plan.settings import GIB


@pytest.fixture(scope="module")
def llama_8b():
    return load_shape("Llama-3.1-8B")


def tried(plan):
    return [" + ".join(trial.changes) for trial in plan.trials]


def test_a_run_that_fits_gets_no_advice(llama_8b):
    plan = make_plan(llama_8b, Settings(strategy="zero3", devices=8, gradient_checkpointing=True))
    assert plan.fits
    assert plan.does_not_fit is None
    assert plan.trials == []


def test_checkpointing_is_the_first_thing_tried_and_enough_where_activations_are_too_many(llama_8b):
    plan = make_plan(llama_8b, Settings(strategy="zero3", devices=8))
    assert plan.does_not_fit == "activations"
    assert tried(plan) == ["gradient checkpointing"]
    assert plan.trials[-1].fits


def test_single_changes_come_in_the_order_of_their_price_before_any_combination(llama_8b):
    plan = make_plan(llama_8b, Settings(strategy="ddp", devices=8, reference="model", memory=20 * GIB))
    singles = [trial.changes[0] for trial in plan.trials if len(trial.changes) == 1]
    assert singles == [
        "gradient checkpointing",
        "micro-batch 1, gradient accumulation 4",
        "strategy zero2",
        "strategy zero3",
        "reference cache",
        "LoRA, rank 16",
        "strategy zero3_offload",
    ]
    assert [len(trial.changes) > 1 for trial in plan.trials].index(True) == len(singles)


def test_the_proposed_combination_fits_and_every_part_of_it_is_needed(llama_8b):
    plan = make_plan(llama_8b, Settings(strategy="ddp", devices=8, reference="model", memory=20 * GIB))
    final = plan.trials[-1]
    assert final.fits
    assert make_plan(llama_8b, final.settings).fits
    others = [trial for trial in plan.trials if set(trial.changes) < set(final.changes)]
    assert not any(trial.fits for trial in others)


def test_changes_that_are_already_made_are_not_proposed_again(llama_8b):
    settings = Settings(
        strategy="zero3", devices=2, gradient_checkpointing=True, micro_batch=1, lora_r=16, memory=2 * GIB
    )
    names = " ".join(tried(make_plan(llama_8b, settings)))
    assert not any(word in names for word in ("checkpointing", "micro-batch", "zero2", "LoRA", "reference cache"))


def test_more_devices_are_tried_last_and_stop_where_they_no_longer_help(llama_8b):
    settings = Settings(strategy="zero2", devices=2, gradient_checkpointing=True, micro_batch=1, sequence_length=65536)
    plan = make_plan(llama_8b, Settings(**{**settings.__dict__, "memory": 3 * GIB}))
    assert not plan.trials[-1].fits
    peaks = [trial.peak for trial in plan.trials if trial.changes[-1].endswith("devices")]
    assert peaks == sorted(peaks, reverse=True)
    assert len(peaks) < 20


def test_an_engine_in_the_same_process_may_move_to_devices_of_its_own(llama_8b):
    settings = Settings(
        method="nsr", engine="vllm", strategy="zero3", devices=8, micro_batch=8, gradient_checkpointing=True,
        memory=34 * GIB,
    )  # fmt: skip
    plan = make_plan(llama_8b, settings)
    assert plan.does_not_fit is not None
    assert any("vllm-server" in name for name in tried(plan))
