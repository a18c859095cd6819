"""Memory against numbers worked out by hand: 8B on 8 devices, 70B on 64."""

from dataclasses import replace

import pytest

from negpo.errors import ConfigError
from negpo.plan.activations import saved_per_layer
from negpo.plan.memory import kv_cache_bytes, memory_of
from negpo.plan.settings import GIB, Settings, parse_bytes
from negpo.plan.shapes import load_shape
from negpo.plan.strategies import host_bytes, state_bytes, state_on_device

STATES = ("weights", "gradients", "optimiser")


@pytest.fixture(scope="module")
def llama_8b():
    return load_shape("Llama-3.1-8B")


@pytest.fixture(scope="module")
def llama_70b():
    return load_shape("Llama-3.1-70B")


def on(strategy, devices, **changes):
    return Settings(**({"method": "npo", "strategy": strategy, "devices": devices} | changes))


@pytest.mark.parametrize(
    ("strategy", "states"),
    [
        ("ddp", 64_242_089_984),  # 2 + 2 + 4 = 8 bytes: Adam's moments are bf16 like the weights
        ("zero1", 44_166_436_864),  # 2 + 2 + 12/8 = 5.5
        ("zero2", 30_113_479_680),  # 2 + 2/8 + 12/8 = 3.75
        ("zero3", 16_060_522_496),  # 16/8 = 2
        ("fsdp2", 16_060_522_496),  # (4 + 4 + 8)/8 = 2
        ("zero3_offload", 0),
    ],
)
def test_states_of_8b_on_8_devices_in_bf16_are_those_worked_out_by_hand(llama_8b, strategy, states):
    assert sum(state_on_device(llama_8b, on(strategy, 8)).values()) == states


@pytest.mark.parametrize(
    ("strategy", "states"),
    [
        ("zero1", 295_443_645_952),  # 4 + 12/64 = 4.1875
        ("zero2", 156_541_036_288),  # 2 + 14/64 = 2.21875
        ("zero3", 17_638_426_624),  # 16/64 = 0.25
    ],
)
def test_states_of_70b_on_64_devices_in_bf16_are_those_worked_out_by_hand(llama_70b, strategy, states):
    assert sum(state_on_device(llama_70b, on(strategy, 64)).values()) == states


def test_float32_on_one_device_takes_sixteen_bytes_a_parameter(llama_8b):
    states = state_on_device(llama_8b, on("single", 1, dtype="fp32"))
    assert [states[name] / llama_8b.parameters for name in STATES] == [4, 4, 8]


def test_offloading_moves_the_states_of_zero3_to_the_host(llama_8b):
    assert host_bytes(llama_8b, on("zero3_offload", 8)) == 16_060_522_496
    assert host_bytes(llama_8b, on("zero3", 8)) == 0


def test_one_layer_of_8b_saves_what_the_formula_gives_by_hand(llama_8b):
    norms = 2 * (4096 * (4 + 2 + 2) + 4)
    attention = 2 * (2 * 4096 + 2 * 1024) + 4 * 32
    assert saved_per_layer(llama_8b, on("zero3", 8)) == norms + attention + 4 * 2 * 14336 == 200_840


def test_checkpointing_of_70b_keeps_one_input_per_layer_and_one_layer(llama_70b):
    settings = on("zero3", 64, micro_batch=1, sequence_length=1024, gradient_checkpointing=True)
    tokens = 2 * 1024  # a forget row and a retain row
    layer = 2 * (8192 * 8 + 4) + 2 * (2 * 8192 + 2 * 1024) + 4 * 64 + 4 * 2 * 28672
    last = next(m for m in memory_of(llama_70b, settings).moments if m.name == "last layer, backward")
    inputs, scratch = 80 * 2 * 8192, 2 * (2 * 28672 + 8192)
    assert last.parts["activations"] == tokens * (inputs + layer + scratch)


def test_70b_on_64_devices_with_80_gib_fits_with_checkpointing_and_not_without(llama_70b):
    settings = on("zero3", 64, micro_batch=4, sequence_length=2048)
    assert memory_of(llama_70b, settings).first_that_does_not_fit(80 * GIB) == "activations"
    small = replace(settings, gradient_checkpointing=True)
    assert memory_of(llama_70b, small).first_that_does_not_fit(80 * GIB) is None


def test_8b_on_one_device_fails_at_the_weights_of_a_small_device_and_later_on_a_larger_one(llama_8b):
    memory = memory_of(llama_8b, on("single", 1, gradient_checkpointing=True))
    limits = {8: "weights", 24: "optimiser", 50: "gradients", 60: "activations"}
    assert {gib: memory.first_that_does_not_fit(gib * GIB) for gib in limits} == limits


def test_zero3_holds_a_billion_whole_parameters_beside_its_shards(llama_8b):
    peak = memory_of(llama_8b, on("zero3", 8)).moments[0]
    assert peak.parts["buffers"] == 2 * 10**9 + 2 * 2 * 4096**2


def test_ddp_needs_a_second_copy_of_the_gradients_for_its_buckets(llama_8b):
    assert memory_of(llama_8b, on("ddp", 8)).peak.parts["buffers"] >= 2 * llama_8b.parameters
    assert memory_of(llama_8b, on("single", 1)).peak.parts["buffers"] == 0


def test_a_reference_model_is_whole_under_zero2_and_sharded_under_zero3(llama_8b):
    whole = memory_of(llama_8b, on("zero2", 8, reference="model")).peak.parts["reference"]
    assert whole == 2 * llama_8b.parameters
    assert memory_of(llama_8b, on("zero3", 8, reference="model")).peak.parts["reference"] == whole // 8
    assert memory_of(llama_8b, on("zero3", 8)).peak.parts["reference"] == 0


def test_a_method_that_looks_at_states_needs_its_reference_model_whatever_is_cached():
    assert Settings(method="rmu").reference_in_steps == "model"
    assert Settings(method="rmu", lora_r=8).reference_in_steps == "adapter"
    with pytest.raises(ConfigError, match="rmu needs a reference model"):
        Settings(method="rmu", reference="cache")


def test_lora_leaves_gradients_and_moments_of_the_adapter_only(llama_8b):
    states = state_on_device(llama_8b, on("single", 1, lora_r=16))
    assert states["gradients"] == 4 * 41_943_040  # rank 16 on all seven maps of 32 layers, in float32
    assert states["weights"] == 2 * llama_8b.parameters + 4 * 41_943_040


def test_keys_and_values_of_8b_take_128_kib_a_token(llama_8b):
    assert kv_cache_bytes(llama_8b, 1, "bf16") == 128 * 1024


def test_vllm_keeps_prompts_of_a_group_once_and_weights_of_its_own(llama_8b):
    settings = on("zero3", 8, method="nsr", engine="vllm", micro_batch=8, sequence_length=3072, max_new_tokens=2048)
    parts = memory_of(llama_8b, settings).peak.parts
    assert parts["KV cache"] == 128 * 1024 * (32 * 2048 + 4 * 1024)  # 4 updates of 8 rows, groups of 8
    assert parts["rollout engine"] == 2 * llama_8b.parameters
    elsewhere = memory_of(llama_8b, replace(settings, engine="vllm-server")).peak.parts
    assert elsewhere["KV cache"] == elsewhere["rollout engine"] == 0


def test_generation_by_transformers_gathers_the_whole_policy_on_every_device(llama_8b):
    rollout = memory_of(llama_8b, on("zero3", 8, method="nsr", micro_batch=8)).moments[0]
    assert rollout.name == "rollout"
    assert rollout.parts["buffers"] >= 2 * llama_8b.parameters


def test_accumulated_gradients_are_there_in_the_forward_already(llama_8b):
    forward = {n: memory_of(llama_8b, on("single", 1, gradient_accumulation=n)).moments[0] for n in (1, 2)}
    assert forward[1].parts["gradients"] == 0
    assert forward[2].parts["gradients"] == 2 * llama_8b.parameters


def test_more_devices_never_need_more_memory_each(llama_70b):
    for strategy in ("zero1", "zero2", "zero3", "fsdp2"):
        peaks = [memory_of(llama_70b, on(strategy, n)).peak.total for n in (8, 16, 64)]
        assert peaks == sorted(peaks, reverse=True), strategy


def test_a_sharper_strategy_leaves_less_state_on_a_device():
    totals = [state_bytes(strategy, "bf16", 8).total for strategy in ("zero1", "zero2", "zero3")]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 * 2**30), ("24 GB", 24 * 10**9), ("512", 512), ("1.5GiB", 3 * 2**29)]
)
def test_memory_is_read_in_decimal_and_binary_units(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "80 apples", "-1GB", "GiB"])
def test_an_amount_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="not an amount of memory"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "npoo"}, "method is 'npoo'; choose one of ga"),
        ({"strategy": "zero4"}, "strategy is 'zero4'"),
        ({"devices": 2}, "strategy=single runs on one device"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"utilisation": 1.4}, "utilisation is 1.4"),
        ({"reference": "adapter"}, "needs lora_r"),
        ({"method": "redi", "reference": "model"}, "redi reads no reference"),
        ({"method": "nsr", "micro_batch": 3}, "split groups of samples=8"),
        ({"method": "nsr", "micro_batch": 8, "max_new_tokens": 2048}, "no room for a prompt"),
    ],
)
def test_contradictions_are_refused_before_anything_is_loaded(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**wrong)
