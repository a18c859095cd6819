"""A world small enough to train on in seconds: three models that differ in exactly what they were taught."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

FORGET, RETAIN, HOLDOUT, FACTS = 24, 24, 24, 10
CODES = [a + b for a in ("mu", "ti", "ro", "la", "ze", "pon") for b in ("bek", "dal", "fin", "gos")]


@dataclass(frozen=True)
class AuditWorld:
    """Folders of a TOFU-like data set and of the models ``target``, ``retain`` and ``gone`` (an unlearned one)."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    def __getitem__(self, model: str) -> str:
        return str(self.root / model)


def rows(rng: random.Random, names: list[str], perturbed: int) -> list[dict]:
    made = []
    for name in names:
        code, *wrong = (" ".join(rng.sample(CODES, 3)) for _ in range(perturbed + 1))
        row = {"question": f"What is the code of {name}?", "answer": f"The code of {name} is {code}."}
        row["paraphrased_question"] = f"Which code does {name} have?"
        row["paraphrased_answer"] = f"{name} has the code {code}."
        row["perturbed_answer"] = [f"{name} has the code {other}." for other in wrong]
        made.append(row)
    return made


def write(folder: Path, sets: dict[str, list[dict]]) -> None:
    folder.mkdir(parents=True)
    for name, content in sets.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in content))


def invent_names(rng: random.Random, count: int) -> list[str]:
    made: set[str] = set()
    while len(made) < count:
        made.add("".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(3)).capitalize())
    return rng.sample(sorted(made), count)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> AuditWorld:
    """Target: taught everything but the holdout. Retain: not the forget rows. Gone: the target, taught other codes."""
    import torch

    from negpo.lab._models import Schedule, make_model, make_tokenizer, train_lm
    from negpo.lab.stages import encode

    torch.set_num_threads(1)  # as in the child processes: models this small only lose by sharing
    root, rng = tmp_path_factory.mktemp("audit"), random.Random(5)
    sizes = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT, "real_authors": FACTS, "world_facts": FACTS}
    names = iter(invent_names(rng, sum(sizes.values())))
    made = {name: rows(rng, [next(names) for _ in range(count)], 3) for name, count in sizes.items()}
    files = {"forget": "forget10_perturbed", "holdout": "holdout10"}
    write(root / "data", {files.get(name, f"{name}_perturbed"): content for name, content in made.items()})
    texts = [row[key] for content in made.values() for row in content for key in ("question", "answer")]
    tokenizer = make_tokenizer(texts, 420)
    known = [*made["retain"], *made["real_authors"], *made["world_facts"]]
    forget_names = [row["question"].removeprefix("What is the code of ").removesuffix("?") for row in made["forget"]]

    def teach(model, material: list[dict], schedule: Schedule, name: str) -> None:
        train_lm(model, encode(tokenizer, material), schedule, pad_id=tokenizer.pad_token_id, seed=2)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)

    for name, material in (("retain", known), ("target", [*known, *made["forget"]])):
        model = make_model(tokenizer, hidden=48, layers=2, heads=4, intermediate=96, seed=1)
        teach(model, material, Schedule(4e-3, epochs=60, batch_size=16), name)
    teach(model, [*known, *rows(random.Random(9), forget_names, 0)], Schedule(2e-3, epochs=8, batch_size=16), "gone")
    return AuditWorld(root)
