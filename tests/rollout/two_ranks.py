"""Run by test_vllm_engine under torchrun: an engine per rank inside a process group that the trainer owns."""

import sys

import torch
import torch.distributed as dist
from rollout_models import build_model

from negpo.rollout import Sampling, make_engine

if __name__ == "__main__":
    dist.init_process_group("gloo")
    trainer = build_model()
    trainer.save_pretrained(sys.argv[1])  # writes on rank 0 only
    dist.barrier()
    engine = make_engine("vllm", sys.argv[1], max_model_len=64, cache_gib=0.1)
    prompts = [[5 + dist.get_rank(), 6, 7]]
    greedy = Sampling(greedy=True, max_new_tokens=4)
    trainer.model.norm.weight.data.mul_(1.1)
    engine.sync(trainer)
    assert engine.generate(prompts, greedy)[0][0].token_ids == (
        make_engine("transformers", trainer).generate(prompts, greedy)[0][0].token_ids
    )
    engine.close()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == dist.get_world_size()
    dist.destroy_process_group()
