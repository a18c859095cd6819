"""Weights from a trainer's GPU to a CUDA vLLM server through the server's own update routes.

The server is started with `--weight-transfer-config '{"backend": "nccl"}'`. The protocol (rendezvous, broadcast in
packed buffers, layer-wise reload) is vLLM's; this file only feeds it. It needs two GPUs: NCCL refuses two ranks on one.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from negpo.errors import ConfigError
from negpo.rollout.weights import Counted, iter_weights


class NCCLTransfer:
    """A communicator between this trainer (rank 0 of the group) and the server's workers (1 to `world_size`)."""

    def __init__(self, address: str, world_size: int, *, rank: int, timeout: float):
        try:
            from vllm.distributed.weight_transfer import HTTPVLLMWeightSyncClient
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        except ImportError as error:
            raise ConfigError("transfer='nccl' needs vLLM in the trainer's environment as well.") from error
        self._client = HTTPVLLMWeightSyncClient(address, timeout=timeout)
        self._info = NCCLTrainerInitInfo(
            master_address=socket.gethostbyname(socket.gethostname()),
            master_port=_free_port(),
            world_size=world_size + 1,
            rank=rank,
        )
        self._engine: Any = None
        self._source: Any = None

    def send(self, model: nn.Module) -> int:
        """Broadcast all (merged) weights, wait until the server has loaded them; returns the bytes sent."""
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        if self._engine is None:
            self._source = _weight_source(model)
            self._engine = WeightTransferTrainerFactory.trainer_init(
                self._info, client=self._client, source=self._source
            )
        self._source.model = model
        self._engine.send_weights()
        return self._source.bytes


def _weight_source(model: nn.Module) -> Any:
    """`iter_weights` as vLLM's `WeightSource`."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class TrainerWeights(WeightSource):
        def __init__(self) -> None:
            self.model, self.bytes = model, 0

        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in iter_weights(self.model)]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            device = torch.device("cuda", torch.cuda.current_device())
            weights = Counted(iter_weights(self.model))
            for name, tensor in weights:
                yield name, tensor.to(device)
            self.bytes = weights.bytes

    return TrainerWeights()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
