"""What the configs of all families share."""

from dataclasses import dataclass

import pytest

from negpo.errors import ConfigError
from negpo.trainers import NSRConfig
from negpo.trainers._run.run_config import RunConfig


@dataclass
class TwoGpus:
    """Stands for TrainingArguments in one process on a machine with two GPUs."""

    fp16: bool = False
    fp16_full_eval: bool = False
    bf16_full_eval: bool = False
    use_cpu: bool = False
    optim: str = "adamw_torch"
    report_to: str = "none"
    dataloader_pin_memory: bool = True
    world_size: int = 1

    def __post_init__(self):
        self._n_gpu = 2


@dataclass
class Config(RunConfig, TwoGpus):
    pass


def test_a_process_trains_on_one_device_whatever_the_machine_has():
    """DataParallel would take twice the batch that was asked for."""
    assert Config(bf16=False)._n_gpu == 1


def test_a_choice_of_the_policy_family_is_refused_with_the_values_that_exist(tmp_path):
    with pytest.raises(ConfigError, match="dead_groups is 'forget'; choose one of keep, drop, resample"):
        NSRConfig(output_dir=str(tmp_path), use_cpu=True, dead_groups="forget")
