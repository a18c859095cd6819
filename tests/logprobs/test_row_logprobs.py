"""The plan of CUDA: kernels in Triton's interpreter against float64, plans against a budget, compilation for GPUs.

Triton decides at its import whether it interprets, so the tests of the kernels run in a process of their own
(``row_kernel_cases.py`` under ``TRITON_INTERPRET=1``), or right here on a GPU.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from negpo.logprobs import token_logprobs
from negpo.logprobs.row_plan import MIN_ROWS, Problem, choose_plan
from negpo.logprobs.rows import has_triton

CASES = Path(__file__).with_name("row_kernel_cases.py")
needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed (pip install triton)")
GIB = 2**30
QWEN = Problem(tokens=8192, hidden=1536, vocab=151_936, width=2, head_trained=True, states_trained=True)


@needs_triton
def test_kernels_equal_float64_references():
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_every_variant_of_the_kernels_compiles_for_a_gpu_that_is_not_here(capability):
    """What a GPU would refuse at the first step is refused here: type errors, shared memory, registers."""
    from row_kernel_cases import compile_kernels

    variants = compile_kernels(capability)
    assert len(variants) == 2**4 + 2**3
    assert all(f"sm_{capability}" in ptx for ptx in variants)


def test_a_large_budget_keeps_the_softmax_and_saves_a_product():
    plan = choose_plan(QWEN, 16 * GIB)
    assert plan.name == "keep"
    assert plan.rows == QWEN.tokens
    assert plan.held == QWEN.tokens * QWEN.vocab * 2


def test_a_small_budget_recomputes_in_blocks_that_fit_it():
    plan = choose_plan(QWEN, 1 * GIB)
    assert plan.name == "recompute"
    assert plan.held == 0
    assert MIN_ROWS <= plan.rows < QWEN.tokens
    head_gradient, states_gradient = 4 * QWEN.vocab * QWEN.hidden, 4 * QWEN.tokens * QWEN.hidden
    assert plan.backward_bytes <= 1 * GIB + head_gradient + states_gradient
    assert sum(rows.stop - rows.start for rows in plan.blocks(QWEN.tokens)) == QWEN.tokens


def test_a_frozen_head_keeps_its_direction_only():
    plan = choose_plan(dataclasses.replace(QWEN, head_trained=False), 4 * GIB)
    assert plan.name == "direct"
    assert plan.held == 4 * QWEN.tokens * QWEN.hidden


def test_a_hopeless_budget_still_gets_the_fewest_rows():
    assert choose_plan(QWEN, 1).rows == MIN_ROWS
    assert choose_plan(dataclasses.replace(QWEN, tokens=5), 1).rows == 5


def test_a_larger_budget_is_never_slower():
    seconds = [choose_plan(QWEN, budget * GIB // 4).seconds for budget in range(1, 60)]
    assert seconds == sorted(seconds, reverse=True)


def test_float64_states_are_refused_by_name():
    hidden, weight, labels = torch.randn(1, 3, 4).double(), torch.randn(9, 4).double(), torch.zeros(1, 3).long()
    with pytest.raises(ValueError, match="triton"):
        token_logprobs(hidden, weight, labels, labels == 0, backend="triton")
