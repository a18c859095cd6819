"""Membership inference scores and AUCs against the reference's numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from negpo.data.qa import IGNORE
from negpo.eval.mia import attack_aucs, attack_scores, gradient_norms, without_last_label
from negpo.eval.statistics import roc_auc

ATTACKS = {"loss": "loss", "min_k": "min_k_0.4", "min_k_plus_plus": "min_k_pp_0.4", "zlib": "zlib"}


def column(split, name="score"):
    rows = split["value_by_index"]
    return np.array([rows[str(i)][name] for i in range(len(rows))])


def labelled(logits, item):
    labels = torch.tensor(item["labels"][1:])
    logp = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), dim=-1)[: len(labels)]
    where = labels != IGNORE
    return -logp[where].gather(1, labels[where][:, None]).mean().item()


def test_scores_and_aucs_match_the_reference(load_fixture):
    data = load_fixture("eval/ou_mia.json")
    expected, sides = data["expected"], []
    for number, split in enumerate(("forget", "holdout")):
        results = [
            {"nll": loss, "min_k": low, "min_k_plus_plus": relative}
            for loss, low, relative in zip(
                *(column(expected[name][split]) for name in ("loss", "min_k_0.4", "min_k_pp_0.4")), strict=True
            )
        ]
        items = data[split]
        texts = [
            " ".join(data["zlib_words"][i] for i in item["labels"] if i > 2) for item in items
        ]  # ids 0 to 2 are special tokens
        tables = data["reference_logits"][number * len(data["forget"]) :]
        losses = [labelled(table, item) for table, item in zip(tables, items, strict=False)]
        scores = attack_scores(results, texts, reference=losses)
        for name, key in {**ATTACKS, "reference": "reference"}.items():
            np.testing.assert_allclose(scores[name], column(expected[key][split]), rtol=2e-6, atol=1e-6)
        sides.append(scores)
    for name, auc in attack_aucs(*sides).items():
        assert auc == pytest.approx(expected[{**ATTACKS, "reference": "reference"}[name]]["auc"], rel=1e-12)


class TinyLM(nn.Module):
    """tanh(E[x]) W + b, the model of the reference numbers."""

    def __init__(self, parameters):
        super().__init__()
        table = {name: torch.tensor(values, dtype=torch.float64) for name, values in parameters.items()}
        self.embedding = nn.Embedding.from_pretrained(table["E"], freeze=False)
        self.head = nn.Linear(*table["W"].shape, dtype=torch.float64)
        self.head.weight.data, self.head.bias.data = table["W"].T.contiguous(), table["b"]
        self.config = PretrainedConfig()

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.head(torch.tanh(self.embedding(input_ids))))


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_gradient_norms_match_the_reference_and_touch_nothing(load_fixture, p):
    data = load_fixture("eval/ou_mia.json")
    model, expected, sides = TinyLM(data["tinylm"]).eval(), data["expected"][f"gradnorm_p{p}"], []
    model.head.bias.grad = torch.ones_like(model.head.bias)
    for split in ("forget", "holdout"):
        norms = gradient_norms(model, data[split], p=p)
        np.testing.assert_allclose(norms, column(expected[split]), rtol=1e-6)
        sides.append(norms)
    assert roc_auc(*sides) == pytest.approx(expected["auc"], rel=1e-12)
    assert (model.head.bias.grad == 1).all()
    assert model.embedding.weight.grad is None
    assert not model.training


def test_an_item_without_tokens_has_no_gradient_norm(make_model):
    norms = gradient_norms(make_model(), [{"input_ids": [1, 2], "labels": [IGNORE, 2]}])
    assert np.isnan(norms).all()


def test_only_the_last_label_is_dropped():
    assert without_last_label([IGNORE, 5, 6, IGNORE]) == [IGNORE, 5, IGNORE, IGNORE]
    assert without_last_label([IGNORE]) == [IGNORE]
