"""Shapes and types of elementwise operations in a plan are torch's own."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from secureattn.backends.crypten.shapes import _RULES, ShapesOnly

SHAPES = [((2, 3), (2, 3)), ((2, 1, 4), (3, 1)), ((5,), ()), ((0, 3), (1,))]
ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor]
SHIFTS = [operator.lshift, operator.rshift]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]
KINDS = [torch.int64, torch.int32, torch.uint8, torch.bool]


def tensors(shape: tuple[int, ...], kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(shape, dtype=kind), torch.empty(shape, dtype=kind, device="meta")


def same(run: Callable[..., Any], *pairs: Any) -> None:
    """A plan's result has the shape and the type that torch computes, or both refuse."""
    real, planned = zip(*(p if isinstance(p, tuple) else (p, p) for p in pairs), strict=True)
    try:
        wanted = run(*real)
    except RuntimeError:
        return
    with ShapesOnly():
        got = run(*planned)
    assert got.is_meta
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("of", [*ARITHMETIC, *COMPARISONS], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_two_tensors(of: Callable[[Any, Any], Any], kind: torch.dtype) -> None:
    for a, b in SHAPES:
        same(of, tensors(a, kind), tensors(b, torch.int64))
        same(of, tensors(b, kind), tensors(a, kind))


@pytest.mark.parametrize("of", [*ARITHMETIC, *SHIFTS, *COMPARISONS], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_tensor_and_a_number(of: Callable[[Any, Any], Any], kind: torch.dtype) -> None:
    same(of, tensors((2, 3), kind), 3)
    if of not in SHIFTS:
        same(lambda x, n: of(n, x), tensors((2, 3), kind), 1)


def test_in_place_joined_and_negated() -> None:
    def in_place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x ^= y
        x |= 1
        x += y
        return x.addcmul_(x, y).add_(3)

    same(in_place, tensors((2, 3), torch.int64), tensors((3,), torch.int64))
    same(lambda x, y: torch.cat([x, y], -1), tensors((2, 3), torch.int64), tensors((2, 5), torch.int64))
    same(lambda x, y: torch.cat([x, y]), tensors((2, 3), torch.int64), tensors((7, 3), torch.int64))
    same(lambda x: -x, tensors((2, 3), torch.int64))


@pytest.mark.parametrize("kind", [*KINDS, torch.float32, torch.float64], ids=str)
def test_sums(kind: torch.dtype) -> None:
    same(lambda x: x.sum(), tensors((2, 3), kind))
    same(lambda x: x.sum(0), tensors((2, 3), kind))
    same(lambda x: x.sum(-1, keepdim=True), tensors((2, 3), kind))
    same(lambda x: x.sum(dim=1), tensors((2, 3, 4), kind))


def test_what_folding_does_to_real_numbers() -> None:
    """In double and in single precision."""
    for kind in (torch.float64, torch.float32):
        same(lambda x, y: x / y, tensors((2, 3), kind), tensors((3,), kind))
        same(lambda x: x / 3, tensors((2, 3), kind))
        same(lambda x: x.mean(0, keepdim=True), tensors((2, 3), kind))
        same(lambda x: x.mean(-1), tensors((2, 3), kind))
        same(torch.sqrt, tensors((2, 3), kind))
        same(torch.diag, tensors((4,), kind))
        same(lambda x, y: x @ y, tensors((2, 3), kind), tensors((3,), kind))
        same(lambda x, y: x @ y, tensors((2, 3), kind), tensors((3, 5), kind))
        same(torch.matmul, tensors((2, 1, 4, 3), kind), tensors((7, 3, 5), kind))
    same(lambda x: x / 2, tensors((2, 3), torch.int64))


def test_shapes_that_do_not_go_together_are_refused_as_by_torch() -> None:
    with ShapesOnly(), pytest.raises(ValueError, match="broadcast"):
        torch.empty(2, 3, device="meta") + torch.empty(4, device="meta")
    with ShapesOnly(), pytest.raises(ValueError, match="no matrix product"):
        torch.empty(2, 3, device="meta") @ torch.empty(4, 3, device="meta")


def test_real_numbers_are_computed() -> None:
    with ShapesOnly():
        assert (torch.tensor([1, 2]) + 3).tolist() == [4, 5]
        assert torch.cat([torch.tensor([1]), torch.tensor([2])]).tolist() == [1, 2]


def test_every_rule_is_for_a_function_that_torch_has() -> None:
    assert all(callable(function) for function in _RULES)


def test_a_plan_leaves_torchs_compiler_alone() -> None:
    code = (
        "import sys; from secureattn import load_model, load_protocol, make_plan;"
        "make_plan(load_model('digits-vit'), load_protocol('accurate-mpc'), samples=2);"
        "print({'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr
