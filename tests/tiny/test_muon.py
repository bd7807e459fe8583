import pytest
import torch

from driftproof.tiny.supervised import orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 16, 16)])
def test_orthogonal_keeps_directions_and_levels_their_sizes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonal(matrices) @ vh.mT
    sizes = inner.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inner, torch.diag_embed(sizes), atol=1e-4, rtol=0)
    assert sizes.min() > 0.5
    assert sizes.max() < 1.3
