"""Adam in the eigenbasis of the gradients' covariances, for the matrices of a network (SOAP)."""

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Soap"]

LARGEST_SIDE = 1024
"""Sides of matrices longer than this keep the basis they have: a covariance would take more than the step itself."""

BASIS_EVERY = 10
"""Steps between two refinements of the bases, by one power iteration each."""


@final
class Soap(torch.optim.Optimizer):
    """SOAP (Vyas et al., arXiv 2409.11321): Adam on gradients turned into the eigenbases of E G Gᵀ and E Gᵀ G.

    Weights of two or more axes are matrices, (outputs, the rest); vectors take Adam's steps, at the share
    ``vector_rate`` of the rate. A network's weights see one law of inputs for a whole run, so their covariances change
    slowly, and steps along eigenvectors, each at a rate of its own, go where Adam's along the axes cannot. The first
    gradient of a matrix makes its bases, and no step. All state is tensors, one set a parameter, so that a checkpoint
    holds it.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.95, 0.95),
        vector_rate: float = 0.3,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
    ):
        how = {"lr": lr, "betas": betas, "vector_rate": vector_rate, "weight_decay": weight_decay, "eps": eps}
        super().__init__(parameters, how)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Take a step along every gradient that there is."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_of(parameter, group)

    def _step_of(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad.detach()
        matrix = parameter.ndim > 1
        if matrix:
            gradient = gradient.flatten(1)
        if not state:
            _begin(state, gradient, matrix)
            if matrix:
                return  # in its own eigenbasis a gradient is rounding but for the diagonal: no step along it
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        turned = _turned(gradient, state)
        state["square"].mul_(second).addcmul_(turned, turned, value=1 - second)
        count = state["step"].item()
        root = (state["square"] / (1 - second**count)).sqrt_().add_(group["eps"])
        update = _turned_back(_turned(state["mean"], state).div_(root), state).div_(1 - first**count)
        rate = group["lr"] * (1 if matrix else group["vector_rate"])
        parameter.mul_(1 - rate * group["weight_decay"]).add_(update.view_as(parameter), alpha=-rate)
        _follow(state, gradient, 1 - second, refine=count % BASIS_EVERY == 0)


def _begin(state: dict[str, Tensor], gradient: Tensor, matrix: bool) -> None:
    """Make the state of a parameter; the bases are the eigenvectors of its first gradient's covariances."""
    state |= {"step": torch.zeros(()), "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
    for side in (0, 1) if matrix else ():
        if gradient.shape[side] <= LARGEST_SIDE:
            covariance = _covariance(gradient, side)
            state[f"covariance{side}"] = covariance
            state[f"basis{side}"] = torch.linalg.eigh(covariance.double())[1].flip(1).to(gradient).contiguous()


def _covariance(gradient: Tensor, side: int) -> Tensor:
    return gradient @ gradient.T if side == 0 else gradient.T @ gradient


def _turned(gradient: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return U₀ᵀ G U₁ for the bases that there are."""
    left, right = state.get("basis0"), state.get("basis1")
    turned = gradient.clone() if left is None else left.T @ gradient
    return turned if right is None else turned @ right


def _turned_back(turned: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return U₀ G U₁ᵀ for the bases that there are."""
    left, right = state.get("basis0"), state.get("basis1")
    gradient = turned if left is None else left @ turned
    return gradient if right is None else gradient @ right.T


def _follow(state: dict[str, Tensor], gradient: Tensor, share: float, *, refine: bool) -> None:
    """Let a gradient enter the covariances; now and then turn the bases to them, largest directions first."""
    for side in (0, 1):
        if f"basis{side}" not in state:
            continue
        covariance = state[f"covariance{side}"].lerp_(_covariance(gradient, side), share)
        if refine:
            basis = state[f"basis{side}"]
            image = covariance @ basis
            order = (basis * image).sum(0).argsort(descending=True, stable=True)
            state["square"] = state["square"].index_select(side, order)
            state[f"basis{side}"] = torch.linalg.qr(image[:, order])[0].contiguous()
