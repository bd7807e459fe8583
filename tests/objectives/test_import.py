import subprocess
import sys


def test_importing_the_objectives_imports_nothing_heavy_but_torch():
    program = (
        "import sys, driftproof.objectives, driftproof.advantages; print(*sorted(m.split('.')[0] for m in sys.modules))"
    )
    loaded = set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "torch" in loaded
    assert not loaded & {"transformers", "pydantic", "rich", "matplotlib", "tensorboard", "safetensors", "tomli_w"}
