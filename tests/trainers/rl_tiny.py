"""Tiny policies, scripted rollouts, and trainers on them for the reinforcement-learning tests.

Completions are written down, so that a test knows every reward: a text with "+" is right, one with "?" cannot be
judged, anything else is wrong.
"""

import gc
from importlib import import_module

import torch
from unlearn_tiny import make_model, make_tokenizer

from negpo.rollout import Sample

PROMPTS = [{"prompt": text} for text in ("one", "two words", "three", "4?", "five of them", "six", "7", "8!")]
MIXED = (("a+", "bb", "c", "dddddd"), ("e+", "f+", "gg+", "h"), ("no", "nope", "never", "n"), ("y+", "yes+", "+", "++"))


gc.freeze()  # every train() collects garbage; the imported libraries need not be searched each time


def plus_reward(prompts, completions, **_):
    """1 for a text with "+", 0 for others, None for "?"."""
    return [None if "?" in text else float("+" in text) for text in completions]


class ScriptedEngine:
    """Gives group g of a rollout the texts ``groups[g % len(groups)]``, whatever the prompt; counts its calls."""

    name = "transformers"

    def __init__(self, groups=MIXED, logps=None):
        self.groups, self.logps, self.model, self.calls = groups, logps, None, []
        self.tokenizer = make_tokenizer()

    def generate(self, prompt_ids, sampling, *, prompt_keys=None, wanted=None, on_sample=None):
        self.calls.append(list(prompt_keys))
        rows = []
        for place, key in enumerate(prompt_keys):
            texts = self.groups[int(key.split(":")[1]) % len(self.groups)]
            rows.append([self._sample(place, index, text) for index, text in enumerate(texts[: sampling.n])])
        return rows

    def _sample(self, place, index, text):
        ids = self.tokenizer(text)["input_ids"] + [0] if text else []  # 0 ends a text
        return Sample(place, index, ids, [float("nan") if self.logps is None else self.logps] * len(ids), "stop")

    def sync(self, model):
        from negpo.rollout import SyncReport

        return SyncReport(max_gap=0.0, mean_gap=0.0, tolerance=1.0, tokens=1, seconds=0.0)

    def close(self):
        pass


def make_policy_trainer(method, folder, *, model=None, reward=plus_reward, data=PROMPTS, batch=(4, 1), **settings):
    """A trainer by METHODS name or class; keyword arguments that the trainer knows go there, others to the config.

    One SGD step of rate 1 on the first rollout unless told otherwise: the change of the weights is minus the gradient.
    """
    from negpo.trainers import METHODS

    if isinstance(method, str):
        module, trainer_name, config_name = METHODS[method]
        trainer_class, config_class = (getattr(import_module(module), name) for name in (trainer_name, config_name))
    else:
        trainer_class, config_class = method, method.config_class
    for_trainer = {"engine": ScriptedEngine()}
    for name in ("advantages", "loss", "engine", "callbacks", "peft_config", "eval_dataset"):
        if name in settings:
            for_trainer[name] = settings.pop(name)
    if "engine_name" in settings:  # the config's field; "engine" above is the object
        settings["engine"] = settings.pop("engine_name")
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch[0],
        "gradient_accumulation_steps": batch[1],
        "num_generations": 4,
        "max_completion_length": 8,
        "updates_per_rollout": 1,
        "max_steps": 1,
        "learning_rate": 1.0,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "shuffle_dataset": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "max_entropy_share": None,
        "max_kl": None,
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


def change(method, folder, **settings) -> torch.Tensor:
    """What training changes the weights by."""
    trainer = make_policy_trainer(method, folder, **settings)
    before = weights(trainer)
    trainer.train()
    return weights(trainer) - before


def history(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def naive_rows(groups=MIXED, prompts=PROMPTS):
    """(prompt ids + completion ids, prompt length, group, text) of every scripted row, in order."""
    tokenizer = make_tokenizer()
    rows = []
    for group, texts in enumerate(groups):
        prompt = tokenizer(prompts[group]["prompt"])["input_ids"]
        rows += [(prompt + tokenizer(text)["input_ids"] + [0], len(prompt), group, text) for text in texts]
    return rows


def naive_logps(model, row) -> torch.Tensor:
    """Log-probs of one row's completion from full logits, one unpadded forward."""
    ids, prompt_length, *_ = row
    logits = model(input_ids=torch.tensor([ids])).logits[0, prompt_length - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[prompt_length:]).unsqueeze(1)).squeeze(1)


def naive_step(model, loss, learning_rate=1.0) -> None:
    """One SGD step on a scalar loss, in place."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter -= learning_rate * gradient


def vector(model) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])
