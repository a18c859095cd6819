"""What every objective promises: padding never matters, empty rows leave the mean, empty batches raise, dtypes stay."""

import inspect
import math
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives_support import close

import negpo.objectives as objectives
from negpo.methods import TABLE

PAIR = {"chosen_logps": "chosen_mask", "rejected_logps": "rejected_mask"}
PAIR_REF = PAIR | {"ref_chosen_logps": "chosen_mask", "ref_rejected_logps": "rejected_mask"}
PLAIN, WITH_REF = {"logps": "mask"}, {"logps": "mask", "ref_logps": "mask"}
OFF_POLICY = {"logps": "mask", "old_logps": "mask"}
KTO = WITH_REF | {"idk_logps": "idk_mask", "ref_idk_logps": "idk_mask"}
D2O = {
    "sample_logps": "sample_mask",
    "ref_sample_logps": "sample_mask",
    "rejected_logps": "rejected_mask",
    "ref_rejected_logps": "rejected_mask",
}
CONSTANTS = ("ref_", "old_")  # tensors with these prefixes carry no gradient by contract


@dataclass
class Case:
    """An objective, which tensor lies under which mask, extra per-row arguments, axes beside (B, T)."""

    function: str
    tensors: dict[str, str]
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    per_prompt: int = 0  # K of the tensors that are (B, K, T)
    smooth: bool = True  # the loss value is an antiderivative of the gradient (nothing is detached)


ADVANTAGES = torch.tensor([1.0, -0.7, 0.4])
LABELS = {"correct": torch.tensor([True, False, True]), "pass_rate": torch.tensor([0.5, 0.25, 0.75])}
PSI = torch.tensor([[0.9, 0.2], [0.1, 0.6], [0.3, 0.8]])
POSITIVE = torch.tensor([[True, False], [False, True], [True, False]])
CASES = {
    "nll": Case("nll_loss", PLAIN),
    "ga": Case("ga_loss", PLAIN),
    "npo": Case("npo_loss", WITH_REF),
    "simnpo": Case("simnpo_loss", PLAIN, settings={"gamma": 0.2}),
    "dpo": Case("dpo_loss", PAIR_REF, settings={"scale": 20.0}),
    "kto": Case("kto_loss", KTO, smooth=False),
    "kto_sigmoid": Case("kto_loss", KTO, settings={"form": "sigmoid"}, smooth=False),
    "wga": Case("wga_loss", PLAIN, smooth=False),
    "tnpo": Case("tnpo_loss", WITH_REF, smooth=False),
    "satimp": Case("satimp_loss", PLAIN, smooth=False),
    "catnip": Case("catnip_loss", PLAIN, smooth=False),
    "catnip_ref": Case("catnip_loss", WITH_REF),
    "ceu": Case("ceu_loss", PLAIN | {"log_complement": "mask"}, settings={"skip_first": 0}),
    "undial": Case("undial_loss", PLAIN | {"rest_cross_entropy": "mask", "ref_log_odds": "mask"}),
    "pdu": Case("pdu_loss", {"spread": "mask"}),
    "redi": Case("redi_loss", PAIR),
    "d2o": Case("d2o_loss", D2O, per_prompt=2),
    "lipo": Case("lipo_loss", WITH_REF, {"psi": PSI}, per_prompt=2),
    "aft": Case("aft_loss", PLAIN, {"positive": POSITIVE}, {"variant": "plain"}, per_prompt=2),
    "aft_detached": Case("aft_loss", PLAIN, {"positive": POSITIVE}, per_prompt=2, smooth=False),
    "clipped": Case("clipped_policy_loss", OFF_POLICY, {"advantages": ADVANTAGES}, {"dual_clip": 3.0}),
    "clipped_sequences": Case(
        "clipped_policy_loss", OFF_POLICY, {"advantages": ADVANTAGES}, {"reduction": "sequence_mean"}
    ),
    "clipped_constant": Case(
        "clipped_policy_loss", OFF_POLICY, {"advantages": ADVANTAGES}, {"reduction": "constant", "length": 10}
    ),
    "nft": Case("nft_loss", OFF_POLICY, LABELS, smooth=False),
    "topr": Case("topr_loss", OFF_POLICY, {"rewards": torch.tensor([1.0, -1.0, -1.0])}, smooth=False),
}


def by_signature(function: str) -> Case | None:
    """The case of a smooth loss that takes log-probs and masks only: `chosen_logps` lies under `chosen_mask`, any
    tensor without a mask of its own under `mask`. None where other tensors are needed: those have a line above."""
    parameters = inspect.signature(getattr(objectives, function)).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    masks = {name.removesuffix("mask"): name for name in needed if name.endswith("mask")}
    tensors = {}
    for name in (name for name in needed if name.endswith("logps")):
        side = name.removesuffix("logps")
        tensors[name] = masks.get(side, masks.get(side.removeprefix("ref_").removeprefix("old_"), ""))
    known = set(tensors) | set(masks.values())
    return Case(function, tensors) if known == set(needed) and all(tensors.values()) else None


_LISTED = {case.function for case in CASES.values()}
_LOSSES = {name for method in TABLE.values() for name in method.objectives if name.endswith("_loss")}
CASES |= {name: case for name in sorted(_LOSSES - _LISTED) if (case := by_signature(name))}
every_objective = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def build(case: Case, seed=0, dtype=torch.float64) -> dict[str, torch.Tensor]:
    """Three rows of up to six tokens per mask; K = 2 responses where the objective takes them."""
    generator = torch.Generator().manual_seed(seed)
    arguments = dict(case.rows)
    for name, mask_name in case.tensors.items():
        middle = (case.per_prompt,) if case.per_prompt and mask_name in ("mask", "sample_mask") else ()
        if mask_name not in arguments:
            arguments[mask_name] = torch.rand(3, *middle, 6, generator=generator) < 0.6
            arguments[mask_name][..., 0] = True
        values = -2.5 * torch.rand(arguments[mask_name].shape, generator=generator, dtype=torch.float64) - 0.01
        arguments[name] = values.to(dtype)
    return arguments


def run(case: Case, arguments: dict) -> tuple[torch.Tensor, dict, dict]:
    """Loss, gradients of the log-probs that may carry one, statistics."""
    arguments = dict(arguments)
    trained = [name for name in case.tensors if not name.startswith(CONSTANTS)]
    for name in trained:
        arguments[name] = arguments[name].detach().clone().requires_grad_()
    loss, stats = getattr(objectives, case.function)(**arguments, **case.settings)
    grads = torch.autograd.grad(loss, [arguments[name] for name in trained], allow_unused=True)
    zeros = [torch.zeros_like(arguments[name]) for name in trained]
    grads = [zero if grad is None else grad for zero, grad in zip(zeros, grads, strict=True)]
    return loss, dict(zip(trained, grads, strict=True)), stats


def assert_same(left, right) -> None:
    close(left[0], right[0])
    for name, grad in left[1].items():
        close(right[1][name], grad)
    assert left[2].keys() == right[2].keys()
    for name, value in left[2].items():
        close(right[2][name], value, rtol=1e-7)


@every_objective
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 7.0])
def test_what_stands_under_the_mask_changes_neither_loss_nor_gradient_nor_statistics(case, garbage):
    arguments = build(case)
    dirty = dict(arguments)
    for name, mask_name in case.tensors.items():
        dirty[name] = torch.where(arguments[mask_name], arguments[name], garbage)
    clean_result, dirty_result = run(case, arguments), run(case, dirty)
    assert_same(clean_result, dirty_result)
    for name, grad in dirty_result[1].items():
        assert (grad[~arguments[case.tensors[name]]] == 0).all()


@every_objective
def test_more_padding_changes_nothing(case):
    arguments = build(case)
    wider = dict(arguments)
    for mask_name in set(case.tensors.values()):
        wider[mask_name] = torch.nn.functional.pad(arguments[mask_name], (2, 3), value=False)
    for name in case.tensors:
        wider[name] = torch.nn.functional.pad(arguments[name], (2, 3), value=float("nan"))
    narrow, wide = run(case, arguments), run(case, wider)
    assert_same(narrow, (wide[0], {name: grad[..., 2:-3] for name, grad in wide[1].items()}, wide[2]))


@every_objective
def test_a_row_without_tokens_leaves_every_mean(case):
    arguments = build(case)
    longer = {
        name: torch.cat([value, torch.full_like(value[:1], math.nan if value.is_floating_point() else 1)])
        for name, value in arguments.items()
    }
    for mask_name in set(case.tensors.values()):
        longer[mask_name] = longer[mask_name].index_fill(0, torch.tensor([3]), False)
    plain, extended = run(case, arguments), run(case, longer)
    assert_same(plain, (extended[0], {name: grad[:3] for name, grad in extended[1].items()}, extended[2]))
    assert all((grad[3] == 0).all() for grad in extended[1].values())


@every_objective
def test_a_batch_without_tokens_raises(case):
    arguments = build(case)
    for mask_name in set(case.tensors.values()):
        arguments[mask_name] = torch.zeros_like(arguments[mask_name])
    with pytest.raises(ValueError, match="False everywhere"):
        run(case, arguments)


@every_objective
def test_float32_gives_float32_close_to_float64_and_statistics_are_flat_detached_scalars(case):
    single, double = run(case, build(case, dtype=torch.float32)), run(case, build(case))
    assert single[0].dtype == torch.float32
    assert double[0].dtype == torch.float64
    torch.testing.assert_close(single[0].double(), double[0], rtol=2e-5, atol=1e-6)
    for name, value in double[2].items():
        assert isinstance(name, str)
        assert value.ndim == 0
        assert value.isfinite()
        assert not value.requires_grad
    tokens = [name for name in double[2] if name.endswith("tokens")]
    assert tokens


@every_objective
def test_the_order_of_rows_does_not_matter(case):
    arguments = build(case)
    order = torch.tensor([2, 0, 1])
    shuffled = run(case, {name: value[order] for name, value in arguments.items()})
    plain = run(case, arguments)
    assert_same(plain, (shuffled[0], {n: g[order.argsort()] for n, g in shuffled[1].items()}, shuffled[2]))


@every_objective
def test_bfloat16_log_probs_that_round_to_zero_give_finite_float32_losses_and_gradients(case):
    arguments = build(case)
    for name in case.tensors:
        rounded = torch.full_like(arguments[name], -1e-4).exp().bfloat16().log()
        assert (rounded == 0).all()
        arguments[name] = rounded
    loss, grads, _ = run(case, arguments)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.smooth], ids=[n for n, c in CASES.items() if c.smooth])
def test_gradcheck_passes_in_float64(case):
    arguments = build(case)
    trained = [name for name in case.tensors if not name.startswith(CONSTANTS)]

    def loss(*tensors):
        replaced = arguments | dict(zip(trained, tensors, strict=True))
        return getattr(objectives, case.function)(**replaced, **case.settings)[0]

    assert torch.autograd.gradcheck(loss, [arguments[name].clone().requires_grad_() for name in trained])


@every_objective
def test_reference_and_old_log_probs_receive_no_gradient(case):
    arguments = build(case)
    constants = [name for name in case.tensors if name.startswith(CONSTANTS)]
    for name in case.tensors:
        arguments[name].requires_grad_()
    loss, _ = getattr(objectives, case.function)(**arguments, **case.settings)
    grads = torch.autograd.grad(loss, [arguments[name] for name in constants], allow_unused=True) if constants else ()
    assert all(grad is None or (grad == 0).all() for grad in grads)


@every_objective
def test_wrong_shapes_and_dtypes_raise_with_what_was_seen_and_what_was_expected(case):
    first, mask_name = next(iter(case.tensors.items()))
    arguments = build(case)
    with pytest.raises(ValueError, match=r"shape .*expected"):
        run(case, arguments | {first: arguments[first][..., :-1]})
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        run(case, arguments | {mask_name: arguments[mask_name].long()})
    with pytest.raises(ValueError, match=r"axes"):
        run(case, arguments | {mask_name: arguments[mask_name][0], first: arguments[first][0]})
    function = getattr(objectives, case.function)
    with pytest.raises(ValueError, match="floating-point"):
        function(**arguments | {first: arguments[first].long()}, **case.settings)
    for name, value in case.rows.items():
        with pytest.raises(ValueError, match=rf"{name} has shape .*expected"):
            run(case, arguments | {name: value[:2]})


@given(data=st.data(), name=st.sampled_from(sorted(CASES)))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_scattering_tokens_over_more_positions_changes_nothing(data, name):
    """Any placement of the same tokens, in order, among arbitrary garbage gives the same loss and gradients."""
    case = CASES[name]
    arguments = build(case, seed=data.draw(st.integers(0, 1000)))
    width = data.draw(st.integers(6, 9))
    places = torch.tensor(data.draw(st.lists(st.integers(0, width - 1), min_size=6, max_size=6, unique=True)))
    places = places.sort().values
    scattered = dict(arguments)
    for mask_name in set(case.tensors.values()):
        empty = torch.zeros(*arguments[mask_name].shape[:-1], width, dtype=torch.bool)
        scattered[mask_name] = empty.index_copy(-1, places, arguments[mask_name])
    for tensor_name in case.tensors:
        noise = torch.full((*arguments[tensor_name].shape[:-1], width), float("nan"), dtype=torch.float64)
        scattered[tensor_name] = noise.index_copy(-1, places, arguments[tensor_name])
    moved = run(case, scattered)
    assert_same(run(case, arguments), (moved[0], {n: g[..., places] for n, g in moved[1].items()}, moved[2]))


@pytest.mark.parametrize(
    ("function", "changes"),
    [
        ("npo", {"beta": 0.0}),
        ("simnpo", {"beta": -1.0}),
        ("dpo", {"scale": 0.0}),
        ("kto", {"form": "linear"}),
        ("wga", {"beta": -1.0}),
        ("tnpo", {"eps": -1e-5}),
        ("satimp", {"beta2": -1.0}),
        ("catnip", {"beta": float("nan")}),
        ("redi", {"alpha": -0.1}),
        ("d2o", {"beta": float("inf")}),
        ("aft", {"variant": "soft"}),
        ("clipped", {"clip_low": 1.5}),
        ("clipped", {"clip_high": -0.1}),
        ("clipped", {"dual_clip": 0.9}),
        ("clipped", {"reduction": "mean"}),
        ("clipped", {"reduction": "constant"}),
        ("clipped", {"length": 5}),
        ("nft", {"eps": 0.0}),
        ("nft", {"weighting": "odds"}),
        ("nft", {"negative_weight": -1.0}),
    ],
)
def test_impossible_hyper_parameters_raise_with_the_value_seen(function, changes):
    case = CASES[function]
    with pytest.raises(ValueError, match=rf"{next(iter(changes))} (is|\w+ is)|length is"):
        getattr(objectives, case.function)(**build(case), **case.settings | changes)


def test_pairs_with_one_empty_side_leave_the_mean_and_only_such_pairs_raise():
    for name in ("dpo", "redi", "d2o"):
        case = CASES[name]
        arguments = build(case)
        two = run(case, {key: value[:2] for key, value in arguments.items()})
        arguments["rejected_mask"] = arguments["rejected_mask"].index_fill(0, torch.tensor([2]), False)
        three = run(case, arguments)
        close(three[0], two[0])
        assert all((grad[2] == 0).all() for grad in three[1].values())
        with pytest.raises(ValueError, match="both sides"):
            run(case, _crossed_halves(case))


def _crossed_halves(case: Case) -> dict:
    """Two pairs: the first without its rejected answer, the second without the other side."""
    arguments = {key: value[1:] for key, value in build(case).items()}
    first, second = torch.tensor([0]), torch.tensor([1])
    for mask_name in set(case.tensors.values()):
        empty = first if mask_name == "rejected_mask" else second
        arguments[mask_name] = arguments[mask_name].index_fill(0, empty, False)
    return arguments


def test_every_name_of_the_public_list_exists_and_importing_loads_only_torch():
    for name in objectives.__all__:
        assert callable(getattr(objectives, name))
    code = (
        "import sys, torch; before = set(sys.modules); import negpo.objectives; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; print(*sorted(new))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["negpo"]
