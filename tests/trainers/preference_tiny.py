"""Preference rows, and trainers on the tiny models of ``unlearn_tiny``."""

from importlib import import_module

import torch
from unlearn_tiny import make_model, make_tokenizer

ROWS = [
    {"prompt": "What is 2 plus 2? ", "chosen": "It is 4.", "rejected": "It is 5, surely."},
    {"prompt": "Name a colour, any colour at all: ", "chosen": "Green, like moss.", "rejected": "Seven."},
    {"prompt": "Sky? ", "chosen": "Blue.", "rejected": "It is made of cheese and stone."},
    {"prompt": "Who wrote Blue? ", "chosen": "Ada Moss, in 1901, I think.", "rejected": "Nobody."},
    {"prompt": "Any siblings? ", "chosen": "Two.", "rejected": "Nine hundred."},
    {"prompt": "Where was she born? ", "chosen": "Oslo.", "rejected": "On the moon, or near it."},
]
LISTS = [
    {
        "prompt": row["prompt"],
        "completions": [row["chosen"], row["rejected"], f"Maybe {i}."],
        "scores": [1.0, 0.0, i / 10],
    }
    for i, row in enumerate(ROWS)
]
SAMPLED = [
    {"prompt": row["prompt"], "rejected": row["rejected"], "samples": ["Yes.", f"It is {i}, or so.", "Hm"][: 1 + i % 3]}
    for i, row in enumerate(ROWS)
]
LR = 1e-2
FOR_TRAINER = (
    "train_dataset",
    "ref_model",
    "sample_ref_model",
    "peft_config",
    "callbacks",
    "processing_class",
    "engine",
)


def make_trainer(method: str, folder, *, model=None, batch=(2, 2), **settings):
    """A trainer on ROWS; keyword arguments that the trainer knows go there, all others to the config."""
    from negpo.trainers import METHODS

    module, trainer, config = METHODS[method]
    module = import_module(module)
    for_trainer = {name: settings.pop(name) for name in FOR_TRAINER if name in settings}
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch[0],
        "gradient_accumulation_steps": batch[1],
        "learning_rate": LR,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return getattr(module, trainer)(
        model=model if model is not None else make_model(),
        args=getattr(module, config)(**defaults | settings),
        **{"train_dataset": ROWS, "processing_class": make_tokenizer()} | for_trainer,
    )


def shifted_model():
    """A reference that differs from ``make_model(0)``."""
    model = make_model(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def naive_logps(model, prompt: str, completion: str, *, end: bool = True):
    """(n,) log-probs of the completion's tokens (with eos) from full logits."""
    tokenizer = make_tokenizer()
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([tokenizer(prompt + completion + ("<|eos|>" if end else ""))["input_ids"]])
    logps = model(ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[start - 1 :]
