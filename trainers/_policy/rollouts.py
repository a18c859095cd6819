"""Where completions come from: an engine of ``negpo.rollout``, per-sample seeds, proof after every weight sync."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from negpo.errors import ConfigError, TrainingStopped
from negpo.rollout import RolloutEngine, Sampling, SyncReport, make_engine
from negpo.rollout.adapters import active_adapter, adapter_rank, iter_base
from negpo.rollout.base import EngineError, StaleWeightsError
from negpo.rollout.hand_over import write_weights
from negpo.rollout.weights import iter_weights, unwrap
from negpo.trainers._policy.config import STORED
from negpo.trainers._run import checkpoint

logger = logging.getLogger(__name__)


class RolloutSource:
    """Draws groups of completions for a trainer.

    A sample depends on (seed, rollout number, global prompt number, sample number) and the weights only: not on how
    many processes share the work, and not on whether the run was interrupted.
    """

    def __init__(self, trainer: Any, engine: RolloutEngine | None = None):
        self.trainer, self._engine = trainer, engine
        self.rollouts = 0  # drawn so far; part of every seed
        self._synced_at: int | None = None
        self.last_sync: SyncReport | None = None

    @property
    def engine(self) -> RolloutEngine:
        if self._engine is None:
            name = self.trainer.args.engine
            self._engine = make_engine(name, self._source(), self.trainer.tokenizer, **self._options())
        return self._engine

    @engine.setter
    def engine(self, engine: RolloutEngine) -> None:
        """Go on with another engine, e.g. one around the present one; it gets the weights before it draws."""
        self._engine, self._synced_at = engine, None

    def _options(self) -> dict[str, Any]:
        """``engine_options``, and what follows from the run: the adapter's rank, the dtype of the training."""
        trainer, args = self.trainer, self.trainer.args
        options = dict(args.engine_options or {})
        if args.deterministic_rollouts and args.engine != "vllm-server":
            options["deterministic"] = True
        if args.engine == "transformers":
            return options
        if args.adapter_sync == "adapter" and (rank := adapter_rank(trainer.model)):
            options.setdefault("adapter_rank", rank)
        if args.engine == "vllm":
            half = trainer.accelerator.mixed_precision == "bf16" or trainer.model.dtype == torch.bfloat16
            options.setdefault("dtype", "bfloat16" if half else "float32")
        return options

    @property
    def in_place(self) -> bool:
        """Whether the engine decodes with the trainer's own modules, so that nothing can be stale."""
        return getattr(self.engine, "model", None) is self.trainer.model

    def draw(self, prompt_ids: list[list[int]], n: int, first_prompt: int) -> tuple[list[list[int]], list[list[float]]]:
        """Completions and log-probs for local rows, each prompt ``n`` times in a row.

        ``first_prompt`` is the number of the first prompt among those of all processes.
        """
        prompts = prompt_ids[::n]
        if any(row != prompts[i // n] for i, row in enumerate(prompt_ids)):
            raise ConfigError(f"rows do not come in groups of {n} equal prompts; was the sampler replaced?")
        self.sync()
        training = self.trainer.model.training
        # Evaluation must not shift the seeds of the training samples that follow it.
        name = str(self.rollouts) if training else f"evaluation {self.trainer.state.global_step}"
        keys = [f"{name}:{first_prompt + i}" for i in range(len(prompts))]
        self.rollouts += training
        # An engine over the trainer's own modules samples in the precision in which they are trained.
        with self.trainer.whole_weights(), explained(self.trainer), self.trainer.accelerator.autocast():
            beat = self.trainer.watch.beat
            groups = self.engine.generate(prompts, self._sampling(n), prompt_keys=keys, on_sample=beat)
        beat()
        samples = [sample for group in groups for sample in group]
        return [list(s.token_ids) for s in samples], [list(s.logprobs) for s in samples]

    def sync(self) -> None:
        """Bring the engine to the current weights; raises StaleWeightsError when they did not arrive."""
        step = self.trainer.state.global_step
        if self._synced_at == step or self.in_place or self.trainer.args.engine == STORED:
            return
        with explained(self.trainer):
            self.last_sync = self.engine.sync(self.trainer.model)
        self._synced_at = step
        for name in ("max_gap", "mean_gap", "seconds"):
            self.trainer.record_metric(f"sync/{name}", getattr(self.last_sync, name))

    def _sampling(self, n: int) -> Sampling:
        args = self.trainer.args
        return Sampling(
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p or 0.0,
            n=n,
            max_new_tokens=args.max_completion_length,
            stop_token_ids=tuple(self.trainer.eos_token_ids),
            seed=args.seed,
        )

    def _source(self) -> Any:
        """What the engine is started from: the module itself, the server's address, or a checkpoint folder."""
        trainer = self.trainer
        if trainer.args.engine == "transformers":
            return trainer.model
        if trainer.args.engine == "vllm-server":
            args = trainer.args
            return args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        base = unwrap(trainer.model)
        name = base.config._name_or_path
        if name and Path(name).is_dir():
            return name
        return str(self._written_base(base))

    def _written_base(self, base: Any) -> Path:
        """A checkpoint folder for the engine of a model that came from memory: the plain weights, below an adapter."""
        trainer, main = self.trainer, self.trainer.accelerator.is_main_process
        weights = iter_base(trainer.model) if active_adapter(trainer.model) else iter_weights(trainer.model)
        folder = write_weights(weights, Path(trainer.args.output_dir) / "engine", keep=main)
        if main:
            for part in (base.config, base.generation_config, trainer.tokenizer):
                part.save_pretrained(folder)
        return Path(broadcast_object_list([str(folder)])[0])

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


@contextmanager
def explained(trainer: Any) -> Iterator[None]:
    """Around the engine's work: whatever kills the engine ends the run with the way to go on.

    Nothing of the rollout is kept. It is a function of seed, number and weights, so a resumed run draws it again.
    """
    try:
        yield
    except StaleWeightsError:  # the engine is well, and says what to do
        raise
    except (EngineError, OSError, EOFError, RuntimeError) as error:
        last = checkpoint.last_complete(trainer.args.output_dir)
        kept = f"resume from {last}" if last else "no checkpoint was written yet, start again"
        raise TrainingStopped(
            f"the rollout engine ({trainer.args.engine}) failed in the rollout after step {trainer.state.global_step}: "
            f"{type(error).__name__}: {error}. When it is back, {kept}; the same samples are then drawn again"
        ) from error


class PromptStream:
    """Replacement prompts: dataset rows in an order that is a function of the seed and the position alone."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.position = size, seed, 0

    def draw(self, count: int) -> list[int]:
        """The next ``count`` row numbers, over all processes."""
        rows = []
        for place in range(self.position, self.position + count):
            epoch, index = divmod(place, self.size)
            generator = torch.Generator().manual_seed(self.seed + 7_919 * (epoch + 1))
            rows.append(int(torch.randperm(self.size, generator=generator)[index]))
        self.position += count
        return rows
