"""Tiny policies, a toy reward, and trainers on them for the reinforcement-learning tests."""

from importlib import import_module

import torch
from unlearn_tiny import make_model, make_tokenizer

PROMPTS = [
    {"prompt": text, "wanted": "a"} for text in ("one", "two words", "three", "4?", "five of them", "six", "7", "8!")
]


def letters_reward(prompts, completions, **_):
    """Right when the text's bytes hold an even letter count: about half of what a random model writes."""
    return [float(sum(character.isalpha() for character in text) % 2 == 0) for text in completions]


def make_policy_trainer(method, folder, *, model=None, reward=letters_reward, data=PROMPTS, batch=(4, 1), **settings):
    """A trainer by METHODS name or class; keyword arguments that the trainer knows go there, others to the config."""
    from negpo.trainers import METHODS

    if isinstance(method, str):
        module, trainer_name, config_name = METHODS[method]
        trainer_class, config_class = (getattr(import_module(module), name) for name in (trainer_name, config_name))
    else:
        trainer_class, config_class = method, method.config_class
    names = ("advantages", "loss", "engine", "callbacks", "peft_config")
    for_trainer = {name: settings.pop(name) for name in names if name in settings}
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch[0],
        "gradient_accumulation_steps": batch[1],
        "num_generations": 4,
        "max_completion_length": 6,
        "updates_per_rollout": 1,
        "max_steps": 1,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "max_entropy_share": None,
    }
    return trainer_class(
        model=model if model is not None else make_model(),
        reward_funcs=reward,
        args=config_class(**defaults | settings),
        train_dataset=list(data),
        processing_class=make_tokenizer(),
        **for_trainer,
    )


def weights(trainer) -> torch.Tensor:
    """All parameters as one float64 vector."""
    return torch.cat([p.detach().double().flatten() for p in trainer.model.parameters()])


def history(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
