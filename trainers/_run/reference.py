"""Where a run's reference comes from: cached log-probs, the model without its adapter, or a second model."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from negpo.errors import ConfigError
from negpo.reference import ReferenceCache, ReferenceKey, build_or_open, hash_model, hash_rows, holds, score_rows
from negpo.trainers._run import sharding
from negpo.trainers._run.model import is_peft, starts_without_adapter
from negpo.trainers._run.rows import Encoded, label_count

logger = logging.getLogger(__name__)


class Reference:
    """The frozen starting point of a run.

    ``source`` is "cache" (log-probs computed once before training), "adapters_off" or "model" (every step). "auto" is
    the cache: a forget set is small and visited many times, so one pass replaces one reference forward per step. A KL
    term needs whole distributions, which no cache holds: it uses the model without adapter, else a second model.
    The model without its adapter is the start only where the adapter adds nothing yet; one that was trained before is
    part of the start.

    Call ``ready`` once caches are filled; a second model then takes part in every step, sharded like the policy.
    """

    def __init__(self, model: Any, ref_model: Any, *, source: str, needs_model: bool):
        sharding.check_loading()
        if source == "adapters_off" and not is_peft(model):
            raise ConfigError("reference=adapters_off needs a PEFT model; pass peft_config or choose cache or model")
        self._without_adapter = starts_without_adapter(model)
        if source == "adapters_off" and not self._without_adapter:
            raise ConfigError(
                "reference=adapters_off: the adapter is trained already, so the model without it is not what this run "
                "starts from. Set reference=auto or model, or merge the adapter and pass a new peft_config"
            )
        if source == "adapters_off" and ref_model is not None:
            raise ConfigError("reference=adapters_off ignores ref_model; drop one of the two")
        self.source = "cache" if source == "auto" else source
        self.policy, self.model = model, ref_model
        needs_model = needs_model or self.source == "model"
        if needs_model and ref_model is None and (self.source == "model" or not self._without_adapter):
            self.model = sharding.frozen_copy(model)
        if self.model is not None:
            self.model.requires_grad_(False).eval()
        self._in_steps = needs_model or self.source != "cache"
        behind = "ref_model" if ref_model is not None else "adapters off" if self.model is None else "a frozen copy"
        logger.info(
            "reference: log-probs from %s; model in every step: %s", self.source, behind if needs_model else "none"
        )

    def ready(self, accelerator: Any) -> None:
        """Place the second model, if there is one that steps will ask."""
        if self.model is not None and self._in_steps:
            self.model = sharding.ready_for_steps(self.model, accelerator)
            sharding.settle_layouts(self.model)

    @contextmanager
    def active(self, policy: Any) -> Iterator[Any]:
        """The reference as a model in eval mode: the second one, or ``policy`` (maybe wrapped) with adapters off."""
        if self.model is not None:
            yield self.model
            return
        training = [module for module in policy.modules() if module.training]
        policy.eval()
        try:
            with self.policy.disable_adapter() if self._without_adapter else _unchanged():
                yield policy
        finally:
            for module in training:
                module.training = True

    def weights_hash(self) -> str:
        """Of the weights that the reference has: of the policy's base alone where an adapter is switched off."""
        source = self.model if self.model is not None else self.policy
        return hash_model(source, adapters=not (self.model is None and self._without_adapter))

    def cached(
        self,
        rows: Sequence[Encoded],
        accelerator: Any,
        directory: Path,
        *,
        pad_id: int,
        max_length: int,
        identity: dict[str, str],
    ) -> ReferenceCache:
        """Log-probs of ``rows``, from disk or computed now, every process scoring its share of them."""
        source = self.model if self.model is not None else self.policy
        key = ReferenceKey(
            rows=hash_rows(rows),
            weights=self.weights_hash(),
            max_length=max_length,
            precision=f"{next(source.parameters()).dtype}/{accelerator.mixed_precision}".removeprefix("torch."),
            **identity,
        )

        def compute() -> Iterator[tuple[int, Any]]:
            with sharding.ready_to_score(source, accelerator) as scorer, accelerator.autocast():
                if accelerator.num_processes > 1:
                    sharding.settle_layouts(scorer)
                with self._as_reference(scorer) as model:
                    share = (accelerator.process_index, accelerator.num_processes)
                    yield from score_rows(model, rows, pad_id=pad_id, share=share)

        counts = [label_count(row) for row in rows]
        if accelerator.num_processes == 1:
            return build_or_open(directory, key, counts, compute)
        known = all(ok for _, ok in sharding.exchange([(0, holds(directory, key))], accelerator))
        found = [] if known else sharding.exchange(compute(), accelerator)
        with accelerator.local_main_process_first():  # folders on local disks are filled on every machine
            return build_or_open(directory, key, counts, lambda: found)

    @contextmanager
    def _as_reference(self, scorer: Any) -> Iterator[Any]:
        """``scorer`` is what runs before training: the second model as it is, the policy with its adapters off."""
        if self.model is not None:
            yield scorer
            return
        with self.active(scorer) as model:
            yield model


@contextmanager
def _unchanged() -> Iterator[None]:
    yield
