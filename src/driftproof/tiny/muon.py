"""The optimizer of the tiny models: Muon for the matrices within the layers, AdamW for the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

MATRIX_RATE = 8e-3
"""Learning rate of the matrices within the layers; an update's root mean square is 0.2 of it."""
REST_RATE = 4e-3


def optimizers_of(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Both optimizers; AdamW alone takes two to four times the demonstrations, and on some seeds is stuck for long."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    adamw = torch.optim.AdamW(rest, lr=REST_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [Muon(matrices, MATRIX_RATE), adamw]


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, each matrix' update replaced by the nearest orthogonal matrix.

    In float32, matrices of equal shape together: `torch.optim.Muon` computes in bfloat16, which a processor without
    instructions for it emulates, an order of magnitude slower.
    """

    def __init__(self, matrices: Sequence[Tensor], lr: float, momentum: float = 0.95) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        super().__init__([{"params": group} for group in by_shape.values()], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            matrices, momentum = group["params"], group["momentum"]
            gradients = torch.stack([matrix.grad for matrix in matrices])
            average = self.state[matrices[0]].setdefault("average", torch.zeros_like(gradients))
            average.lerp_(gradients, 1 - momentum)
            updates = orthogonal(gradients.lerp(average, momentum))
            # An orthogonal matrix has root mean square 1/sqrt(longer side); 0.2 is what AdamW's updates have.
            scale = 0.2 * max(gradients.shape[1:]) ** 0.5
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.sub_(update, alpha=group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the nearest orthogonal matrix of each of `matrices` [K, M, N]: singular values of about 0.7 to 1.2.

    Five steps of a Newton-Schulz iteration; its coefficients, from Muon's authors, trade accuracy for speed.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x: Tensor = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrices else x.mT
