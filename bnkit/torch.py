"""Batch normalization for PyTorch, from the derived formulas: the module of chapter "pytorch".

``python -m bnkit.torch --output FILE`` holds it against ``torch.nn.BatchNorm1d`` and its kin and
records what came out, for readers of the chapter who have no PyTorch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bnkit.gradcheck import relative_error
from bnkit.keras import load_fashion_mnist

Tensor = Any  # torch's own type, which mypy sees only where torch is installed


def along_channels(vector: Tensor, x: Tensor) -> Tensor:
    """Shape (C,) as (1, C, 1, …), to broadcast against x."""
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


class BatchNormFunction(torch.autograd.Function):  # type: ignore[misc]  # torch may be absent
    """Normalize by the batch; the gradient is the closed form and not that of each operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Any:
        """Return y, and the mean and the biased variance of the batch."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean = x.mean(axes)
        centred = x - along_channels(mean, x)
        variance = centred.square().mean(axes)
        inv_std = (variance + epsilon).rsqrt()
        x_hat = centred * along_channels(inv_std, x)
        ctx.save_for_backward(x_hat, gamma, inv_std)
        ctx.mark_non_differentiable(mean, variance)
        return along_channels(gamma, x) * x_hat + along_channels(beta, x), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        """Return dx, dgamma and dbeta; epsilon has no gradient."""
        x_hat, gamma, inv_std = ctx.saved_tensors
        axes = [axis for axis in range(dy.ndim) if axis != 1]
        m = dy.numel() // dy.shape[1]
        dbeta, dgamma = dy.sum(axes), (dy * x_hat).sum(axes)
        residual = dy - along_channels(dbeta / m, dy) - x_hat * along_channels(dgamma / m, dy)
        return along_channels(gamma * inv_std, dy) * residual, dgamma, dbeta, None


class BatchNorm(torch.nn.Module):  # type: ignore[misc]  # torch may be absent
    """A drop-in for ``torch.nn.BatchNorm1d``, ``2d`` and ``3d``: same defaults and state_dict.

    Args:
        num_features: C, the length of axis 1.
        eps: added to the variance.
        momentum: weight of the new value in the moving averages; None weighs all batches alike.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = torch.nn.Parameter(torch.ones(num_features))
        self.bias = torch.nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the batch in training, by the moving statistics otherwise."""
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return along_channels(scale, x) * x + along_channels(shift, x)
        m = x.numel() // x.shape[1]
        if m < 2:
            raise ValueError(f"x must have 2 values a channel or more in training, got {m}")
        y, mean, variance = BatchNormFunction.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            new = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, new)
            self.running_var.lerp_(variance * m / (m - 1), new)
        return y


KINDS = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}
KINDS[5] = torch.nn.BatchNorm3d


def differences(shape: tuple[int, ...], *, steps: int = 3) -> dict[str, float]:
    """Relative differences from PyTorch's own module after some steps of training, in float64."""
    torch.manual_seed(0)
    theirs = KINDS[len(shape)](shape[1]).double()
    torch.nn.init.uniform_(theirs.weight, 0.5, 2.0)
    torch.nn.init.normal_(theirs.bias)
    ours = BatchNorm(shape[1]).double()
    ours.load_state_dict(theirs.state_dict())
    for _ in range(steps):
        x, dy = 3 * torch.randn(shape).double() + 1, torch.randn(shape).double()
        results = [_results(module, x, dy) for module in (ours, theirs)]
    return {name: relative_error(results[0][name], results[1][name]) for name in results[0]}


def _results(module: Any, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = module.train()(x)
    dx, dgamma, dbeta = torch.autograd.grad(y, [x, module.weight, module.bias], dy)
    return {
        "y": y.detach(),
        "dx": dx,
        "dgamma": dgamma,
        "dbeta": dbeta,
        "running_mean": module.running_mean,
        "running_var": module.running_var,
        "inference": module.eval()(x).detach(),
    }


def losses(norm: Callable[[int], Any], *, steps: int = 300) -> list[float]:
    """Training losses on Fashion-MNIST of Dense(64), ReLU, norm, Dense(10), in float64."""
    (images, labels), _ = load_fashion_mnist()
    x = torch.from_numpy(images[: 60 * steps]).double().reshape(steps, 60, 784) / 255
    targets = torch.from_numpy(labels[: 60 * steps]).long().reshape(steps, 60)
    torch.manual_seed(0)
    hidden, output = torch.nn.Linear(784, 64), torch.nn.Linear(64, 10)
    net = torch.nn.Sequential(hidden, torch.nn.ReLU(), norm(64), output).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    found = []
    for batch, target in zip(x, targets, strict=True):
        loss = torch.nn.functional.cross_entropy(net(batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def gradients_are_those_of_finite_differences() -> bool:
    """Whether PyTorch's own check of gradients passes, with a generic upstream gradient."""
    torch.manual_seed(0)
    x, gamma, beta = (torch.randn(s).double().requires_grad_() for s in ((4, 3, 2), (3,), (3,)))
    return bool(
        torch.autograd.gradcheck(
            lambda *inputs: BatchNormFunction.apply(*inputs, 0.5)[0], (x, gamma, beta)
        )
    )


def report() -> dict[str, Any]:
    """All that the chapter shows of PyTorch."""
    shapes = [(8, 3), (8, 3, 5), (8, 3, 4, 5), (4, 3, 2, 3, 4)]
    return {
        "version": torch.__version__.partition("+")[0],
        "gradcheck": gradients_are_those_of_finite_differences(),
        "differences": [
            {"module": KINDS[len(shape)].__name__, "shape": shape, **differences(shape)}
            for shape in shapes
        ],
        "state_dict": list(BatchNorm(1).state_dict()),
        "losses": {"ours": losses(BatchNorm), "theirs": losses(torch.nn.BatchNorm1d)},
    }


def main() -> None:
    """Write the report to a file."""
    parser = argparse.ArgumentParser(prog="python -m bnkit.torch", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.parse_args().output.write_text(json.dumps(report(), indent=1) + "\n")


if __name__ == "__main__":
    main()
