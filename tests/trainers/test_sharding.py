"""What can be known about sharded runs in one process: shares of scoring, refusals, copies, epochs."""

import pytest
import torch
from unlearn_tiny import make_model, make_trainer

from negpo.errors import ConfigError
from negpo.reference import score_rows
from negpo.trainers._run import sharding

ROWS = [{"input_ids": [5] * n, "labels": [-100, *[5] * (n - 1)]} for n in (3, 9, 4, 7, 5, 6, 8)]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_score_every_row_in_equally_many_forwards(processes):
    model, forwards, found = make_model(), [], {}
    model.register_forward_hook(lambda *_: forwards.append(1))
    alone = dict(score_rows(model, ROWS, pad_id=1))
    counts = []
    for process in range(processes):
        forwards.clear()
        share = dict(score_rows(model, ROWS, pad_id=1, tokens_per_batch=10, share=(process, processes)))
        counts.append(len(forwards))
        found |= share
    assert len(set(counts)) == 1
    assert found.keys() == alone.keys() == set(range(len(ROWS)))
    for row, logps in alone.items():
        assert torch.allclose(torch.tensor(found[row]), torch.tensor(logps), atol=1e-5)


def test_a_reference_is_refused_where_only_the_first_process_loads_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ConfigError, match="fsdp_cpu_ram_efficient_loading is true"):
        sharding.check_loading()
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    sharding.check_loading()


def test_a_model_in_pieces_is_copied_by_loading_it_again_or_refused(tmp_path, monkeypatch):
    model = make_model()
    model.save_pretrained(tmp_path)
    model.config._name_or_path = str(tmp_path)
    monkeypatch.setattr(sharding, "is_split", lambda model: True)
    twin = sharding.frozen_copy(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    with pytest.raises(ConfigError, match="whose weights are not those"):
        sharding.frozen_copy(model)
    model.config._name_or_path = str(tmp_path / "absent")
    with pytest.raises(ConfigError, match="is loaded from the policy's source"):
        sharding.frozen_copy(model)


def test_two_lora_runs_with_one_seed_begin_with_the_same_adapter(tmp_path):
    from peft import LoraConfig

    adapters = []
    for run in range(2):
        torch.manual_seed(100 + run)  # whatever happened before must not matter
        lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
        trainer = make_trainer("ga", tmp_path / str(run), peft_config=lora, seed=3)
        adapters.append([p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_A" in name])
    assert all(torch.equal(a, b) for a, b in zip(*adapters, strict=True))
    assert any(a.abs().sum() > 0 for a in adapters[0])
