from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from driftproof.tiny.model import make_tiny_model


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "random"
    make_tiny_model(directory, train=False)
    return directory
