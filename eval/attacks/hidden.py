"""The hidden states behind an answer's tokens, layer by layer, one batch at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from negpo.data.collate import pad_batch
from negpo.data.qa import IGNORE, Item
from negpo.errors import ConfigError
from negpo.eval.scoring import Batching
from negpo.logprobs.head import head_of
from negpo.logprobs.products import compute_dtype
from negpo.logprobs.softmax import RunningSoftmax
from negpo.logprobs.tiles import LogitMap, TiledHead, label_overlap, label_rows
from negpo.models import check_vocabulary, evaluating, unwrap

FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm", "norm_f")


@dataclass(frozen=True)
class States:
    """The states that predict the labels of one batch, n in all.

    items: places of the batch's rows in the sequence of items. row: (n,) row of the batch that each state belongs to.
    labels: (n,) the ids predicted. layers: the embeddings, then every layer's output, each (n, H); the last one is
    behind the final norm.
    """

    items: list[int]
    row: Tensor
    labels: Tensor
    layers: list[Tensor]


def answer_states(model: Any, items: Sequence[Item], pad_id: int, batching: Batching) -> Iterator[States]:
    """States at the positions before each label, batch by batch; nothing else of a batch is kept.

    Raises:
        ConfigError: the model does not return hidden states, or ids go beyond its vocabulary.
    """
    check_vocabulary(model, (item["input_ids"] for item in items))
    backbone = unwrap(model).base_model
    device = next(model.parameters()).device
    for places in batching.split([len(item["input_ids"]) for item in items]):
        batch = pad_batch([items[place] for place in places], pad_id)
        ids, mask, labels = (batch[key].to(device) for key in ("input_ids", "attention_mask", "labels"))
        with evaluating(model):
            output = backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        if not output.hidden_states:
            raise ConfigError(f"{type(backbone).__name__} returns no hidden states; its layers cannot be read")
        row, position = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        layers = [*output.hidden_states[:-1], output.last_hidden_state]
        yield States(places, row, labels[row, position + 1], [layer[row, position] for layer in layers])


class Lens:
    """What a layer would predict if the model ended there: its state through the model's final norm and head.

    nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """

    def __init__(self, model: Any):
        self.norm = final_norm(model)
        self.head = head_of(model)

    @torch.no_grad()
    def read(self, states: States, layer: int) -> tuple[Tensor, Tensor]:
        """(log p, rank) of the labels, each (n,): float32, and int64 with 1 for the likeliest token; ties share a rank.

        The vocabulary is walked in tiles, so memory does not grow with it.
        """
        hidden = states.layers[layer]
        hidden = hidden if layer == len(states.layers) - 1 else self.norm(hidden)
        hidden = hidden.to(self.head.weight.device)
        labels, order = states.labels.to(hidden.device).sort()  # every tile then owns one range of labels
        logps, ranks = _label_places(
            hidden[order].to(compute_dtype(hidden)), self.head.weight, self.head.bias, labels, self.head.logit_map()
        )
        back = order.argsort()
        return logps[back], ranks[back]


def final_norm(model: Any) -> nn.Module:
    """The norm between the last layer and the head. ConfigError when the model has none by a usual name."""
    backbone = unwrap(model).base_model
    for name in FINAL_NORMS:
        if isinstance(found := getattr(backbone, name, None), nn.Module):
            return found
    raise ConfigError(
        f"{type(backbone).__name__} has no final norm named {', '.join(FINAL_NORMS)}: leave logit_lens out"
    )


def _label_places(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, logit_map: LogitMap
) -> tuple[Tensor, Tensor]:
    """log p and rank of ascending ``labels`` (n,) for states (n, H)."""
    head = TiledHead(hidden, weight, bias, logit_map, None)
    bounds = label_rows(labels, head)
    running, own = RunningSoftmax(hidden), hidden.new_zeros(head.n)
    for columns, weight_tile in head.vocab_tiles():
        for rows in head.token_tiles():
            tile = head.logits(rows, columns, weight_tile)
            if inside := label_overlap(bounds, rows, columns, head):
                ids = labels[rows][inside] - columns.start
                own[rows][inside] = tile[inside].gather(1, ids.unsqueeze(1)).squeeze(1)
            running.update(rows, tile)
    above = torch.zeros_like(labels)
    for columns, weight_tile in head.vocab_tiles():
        for rows in head.token_tiles():
            above[rows] += (head.logits(rows, columns, weight_tile) > own[rows].unsqueeze(1)).sum(1)
    return (own - running.log_z()).clamp_(max=0.0), above + 1
