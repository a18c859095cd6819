"""Arithmetic on checkpoint folders: values, atomic output, and checkpoints that do not fit together."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from negpo.errors import ConfigError
from negpo.weights import extrapolate_checkpoints, mix_checkpoints

sys.path.insert(0, str(Path(__file__).parent / "trainers"))
from unlearn_tiny import make_model, make_tokenizer


@pytest.fixture
def saved(tmp_path):
    def save(name, seed=0, dtype=torch.float32, tokenizer=None, **settings):
        make_model(seed, dtype, **settings).save_pretrained(tmp_path / name)
        (tokenizer or make_tokenizer()).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: value.float() for name, value in model.named_parameters()}


def test_a_task_vector_is_subtracted_and_tied_weights_stay_tied(saved, tmp_path):
    start, tuned, origin = saved("start", 0), saved("tuned", 1), saved("origin", 2)
    out = extrapolate_checkpoints(start, tuned, tmp_path / "out", weight=0.5, origin=origin)
    a, b, c, found = weights(start), weights(tuned), weights(origin), weights(out)
    for name in a:
        assert torch.allclose(found[name], a[name] - 0.5 * (b[name] - c[name]), atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_half_precision_is_computed_wide_and_rounded_once(saved, tmp_path):
    start, tuned = (saved(name, seed, torch.bfloat16) for name, seed in (("a", 0), ("b", 1)))
    found = weights(extrapolate_checkpoints(start, tuned, tmp_path / "out", weight=0.3))
    a, b = weights(start), weights(tuned)
    for name in a:
        assert torch.equal(found[name], (a[name] - 0.3 * (b[name] - a[name])).bfloat16().float())


def test_mixing_ends_are_the_checkpoints_themselves(saved, tmp_path):
    before, after = saved("before", 0), saved("after", 1)
    for ratio, folder in ((1.0, before), (0.0, after)):
        found, expected = (
            weights(mix_checkpoints(before, after, tmp_path / f"mix{ratio}", ratio=ratio)),
            weights(folder),
        )
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpoints_that_do_not_fit_together_are_refused_and_leave_nothing_behind(saved, tmp_path):
    start = saved("start")
    other = make_tokenizer().__class__(tokenizer_object=make_tokenizer().backend_tokenizer, eos_token="<|pad|>")
    with pytest.raises(ConfigError, match="different tokenizers"):
        mix_checkpoints(start, saved("strange", 1, tokenizer=other), tmp_path / "out", ratio=0.5)
    with pytest.raises(ConfigError, match="do not hold the same tensors"):
        mix_checkpoints(start, saved("deep", 1, num_hidden_layers=3), tmp_path / "out", ratio=0.5)
    with pytest.raises(ConfigError, match="has shapes"):
        mix_checkpoints(start, saved("wide", 1, intermediate_size=96), tmp_path / "out", ratio=0.5)
    with pytest.raises(ConfigError, match="ratio is 2"):
        mix_checkpoints(start, start, tmp_path / "out", ratio=2)
    (start / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter"):
        mix_checkpoints(start, start, tmp_path / "out", ratio=0.5)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".combining-*"))
