"""RMU: steer one layer to a fixed direction on forget text, hold it in place on retain text. arXiv 2403.03218."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from negpo.errors import ConfigError
from negpo.logprobs import backbone_hidden
from negpo.logprobs.head import unwrap
from negpo.objectives import rmu_control_vector, rmu_loss
from negpo.trainers._run.config import require_positive
from negpo.trainers._run.settings import LIVE, Rule
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import concatenate
from negpo.trainers._unlearn.config import UnlearnConfig


@dataclass
class RMUConfig(UnlearnConfig):
    """``rmu_loss(forget states, steering_coeff * u) + alpha * rmu_loss(retain states, frozen states)``.

    The mean runs over labelled tokens, then over rows (the original averages over padding too). The published runs
    train only the MLP output matrices of the steered layer and the two below; set ``trainable_parameters`` so.
    """

    inherited: ClassVar[dict[str, Rule]] = {"pairing": LIVE}

    layer: int = field(default=7, metadata={"help": "Layer whose output is steered."})
    steering_coeff: float = field(default=6.5, metadata={"help": "Length of the random direction on forget text."})
    alpha: float = field(default=1200.0, metadata={"help": "Weight of the retain term."})

    @property
    def reads_reference(self) -> bool:
        return True

    def validate(self) -> None:
        super().validate()
        require_positive(self, "steering_coeff")
        if self.retain_loss != "none":
            raise ConfigError("rmu has its own retain term (alpha); leave retain_loss at none")
        if self.sam_rho:
            raise ConfigError("sam_rho would be ignored: rmu steers states and has no forget gradient of its own")
        if self.reference not in ("auto", "model", "adapters_off"):
            raise ConfigError("rmu compares states, which no cache holds; set reference to auto, model or adapters_off")


class RMUTrainer(UnlearnTrainer):
    """Minimises two ``negpo.objectives.rmu_loss`` terms; always needs ``retain_dataset``.

    Logs ``forget/loss``, ``forget/mean_norm``, ``forget/mean_distance`` and ``retain/loss``, ``retain/mean_distance``:
    RMU does not look at log-probs.
    """

    config_class = RMUConfig
    reduction = "rows"
    needs_reference_model = True
    has_own_retain_term = True

    def batch_loss(self, model, inputs):
        args, rows = self.args, [inputs["forget"], inputs["retain"]]
        joined = concatenate(rows, self.processing_class.pad_token_id)
        n, width = inputs["forget"]["labels"].shape
        states = self._states(model, joined)
        forget_states, retain_states = states[:n, :width], states[n:, : inputs["retain"]["labels"].shape[1]]
        with torch.no_grad(), self.reference.active(model) as reference:
            frozen = self._states(reference, inputs["retain"])
        target = self._control_vector(forget_states)
        # the states of the labelled tokens themselves (no shift), as in open-unlearning
        masks = {name: inputs[name]["labels"] != -100 for name in ("forget", "retain")}
        forget, forget_stats = rmu_loss(forget_states, target, masks["forget"])
        retain, retain_stats = rmu_loss(retain_states, frozen, masks["retain"])
        for name, loss, stats in (("forget", forget, forget_stats), ("retain", retain, retain_stats)):
            n = float(len(masks[name]))
            self._buffer.add(f"{name}/loss", loss * n, n)
            for stat in ("mean_norm", "mean_distance"):
                self._buffer.add(f"{name}/{stat}", stats[stat] * n, n)
        shares = {name: self.share(inputs, name, "rows") for name in masks}
        return shares["forget"] * forget + args.alpha * shares["retain"] * retain

    def _control_vector(self, states: torch.Tensor) -> torch.Tensor:
        """c u, (H,): the same in every step, process and resumed run because it depends on the seed only."""
        generator = torch.Generator().manual_seed(self.args.seed)
        vector = rmu_control_vector(states.shape[-1], scale=self.args.steering_coeff, generator=generator)
        return vector.to(states.device)

    def _states(self, model, rows) -> torch.Tensor:
        """Output of layer ``args.layer``, (B, T, H). The wrapped model runs as a whole, so that its hooks do."""
        caught = []
        layers = decoder_layers(model)
        if not 0 <= self.args.layer < len(layers):
            raise ConfigError(f"layer is {self.args.layer}; the model has layers 0 to {len(layers) - 1}")
        hook = layers[self.args.layer].register_forward_hook(
            lambda module, arguments, output: caught.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            backbone_hidden(model, rows["input_ids"], rows["attention_mask"], packing="padded")
        finally:
            hook.remove()
        return caught[0]


def decoder_layers(model) -> torch.nn.ModuleList:
    """The list of transformer blocks of any HF causal LM, wrapped or not."""
    base = unwrap(model)
    lists = [module for module in base.modules() if isinstance(module, torch.nn.ModuleList)]
    n = base.config.get_text_config().num_hidden_layers
    for blocks in lists:
        if len(blocks) == n:
            return blocks
    raise ConfigError(f"{type(base).__name__} has no list of {n} layers that RMU could steer")
