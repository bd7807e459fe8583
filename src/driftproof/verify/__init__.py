"""Rewards. A verifier is a function of (response text, answer) that returns a number.

```python
from driftproof.verify import build
verifier = build("math", processes=2, timeout_seconds=5.0)     # or "exact", or your own "package.module:function"
verdicts = verifier.score([("so it is \\boxed{18}", "18")])
verifier.close()
```
"""

from __future__ import annotations

from driftproof.names import unknown_name
from driftproof.verify.exact import ExactVerifier
from driftproof.verify.pool import VerifierPool
from driftproof.verify.protocol import Verifier, VerifierError

__all__ = ["Verifier", "VerifierError", "VerifierPool", "build"]


def build(name: str, *, processes: int = 1, timeout_seconds: float = 5.0) -> Verifier:
    """The verifier called `name`: "exact", "math", or "package.module:function", ready to score.

    "exact" runs in this process; the others in a pool of `processes` processes, `timeout_seconds` for each answer.

    Raises:
        VerifierError: unknown name, listing the valid ones; a verifier that cannot be imported; a value out of range.
    """
    if name == "exact":
        return ExactVerifier()
    if name == "math":
        return VerifierPool("driftproof.verify.math:math", processes=processes, timeout_seconds=timeout_seconds)
    if ":" in name:
        return VerifierPool(name, processes=processes, timeout_seconds=timeout_seconds)
    raise VerifierError(unknown_name("verifier", name, ("exact", "math")) + ", or your own 'package.module:function'")
