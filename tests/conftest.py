"""What all tests share: one thread, and a random tiny model on disk."""

import os
from pathlib import Path

# Read when a library of the hub is first imported: no test asks it, or waits for one that cannot be reached.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Read when Triton is first imported, which any test may be the first to do: its kernels then run on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("driftproof", deadline=None, max_examples=40)
settings.load_profile("driftproof")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 of random weights with its tokenizer; not to be written to."""
    # Brings Triton with it, which must not be imported before the environment says how.
    from driftproof.tiny.model import make_tiny_model

    path = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    make_tiny_model(path, train=False)
    return path
