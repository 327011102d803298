"""Masked sums: nothing of the padding gets through, neither value nor gradient."""

import ast
import math
import sys
from pathlib import Path

import pytest
import torch

from tokencredit.losses import ops

X = [[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]
MASK = torch.tensor([[1, 0, 1], [0, 1, 0]])


def test_masked_sum_and_mean() -> None:
    assert ops.masked_sum(torch.tensor(X), MASK).tolist() == [5.0, 16.0]
    assert ops.masked_mean(torch.tensor(X), MASK).tolist() == [2.5, 16.0]


def test_sum_without_tokens_is_zero_and_mean_is_refused() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    assert ops.masked_sum(torch.tensor(X), mask).tolist() == [7.0, 0.0]
    with pytest.raises(ValueError, match=r"chosen_mask has no token in rows \[1\]"):
        ops.masked_mean(torch.tensor(X), mask, name="chosen_mask")


def test_sums_are_float32() -> None:
    # In bfloat16, 256 + 1 is 256 again.
    x = torch.tensor([[256.0] + [1.0] * 64], dtype=torch.bfloat16)
    total = ops.masked_sum(x, torch.ones(1, 65))
    assert total.dtype == torch.float32
    assert total.item() == 320.0


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduce", [ops.masked_sum, ops.masked_mean])
def test_garbage_in_padding_has_no_value_and_no_gradient(reduce, garbage: float) -> None:
    x = torch.tensor(X).masked_fill(MASK == 0, garbage).requires_grad_()
    result = reduce(x, MASK)
    assert torch.equal(result, reduce(torch.tensor(X), MASK))
    result.sum().backward()
    assert torch.equal(x.grad[MASK == 0], torch.zeros(3))
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [torch.exp, torch.sigmoid, torch.square, lambda x: torch.log(2 + x)])
def test_zero_padding_before_a_nonlinear_function_keeps_gradients_clean(function, garbage: float) -> None:
    x = torch.tensor(X).masked_fill(MASK == 0, garbage).requires_grad_()
    ops.masked_sum(function(ops.zero_padding(x, MASK)), MASK).sum().backward()
    assert torch.equal(x.grad[MASK == 0], torch.zeros(3))
    assert torch.isfinite(x.grad).all()


def test_shape_errors_name_the_argument_and_both_shapes() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    ops.check_shapes(logps=a, mask=MASK)
    ops.check_batch(chosen=a, rejected=b)
    with pytest.raises(ValueError, match=r"mask has shape \[2, 4\], but logps has shape \[2, 3\]"):
        ops.check_shapes(logps=a, mask=b)
    with pytest.raises(ValueError, match=r"rewards has shape \[4, 2\], but logps has shape \[2, 3\]"):
        ops.check_batch(logps=a, mask=b, rewards=b.T)


def test_losses_import_torch_only() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    files = sorted(Path(ops.__file__).parent.glob("**/*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "."]
            for name in names:
                assert name.startswith("tokencredit.losses") or name.split(".")[0] in allowed, f"{file.name}: {name}"
