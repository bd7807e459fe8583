import subprocess
import sys

MODULES = "import sys; print(*sorted(sys.modules))"


def loaded(program: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{program}; {MODULES}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_objectives_and_advantages_import_torch_and_nothing_heavier():
    """Beyond what torch brings: the standard library and the few modules of driftproof that they need."""
    by_them = loaded("import driftproof.objectives, driftproof.objectives.advantages")
    new = by_them - loaded("import torch")
    assert "torch" in by_them
    own = {name for name in new if name.split(".")[0] == "driftproof"}
    assert {name for name in own if not name.startswith("driftproof.objectives")} == {
        "driftproof",
        "driftproof.errors",
        "driftproof.text",
        "driftproof.types",
    }
    assert {name.split(".")[0] for name in new - own} <= sys.stdlib_module_names | {"numpy"}
