"""Rewards. A verifier is a function of (response text, answer) that returns a number.

A reward function with TRL's signature, `completions, **columns -> list[float]`, is one too: it is given `completions`,
`prompts` and `answer`, lists of one each, by keyword and as far as it takes them.

```python
from driftproof.verify import Item, build
verifier = build("math", processes=2, timeout_seconds=5.0)     # or "exact", or your own "package.module:function"
verdicts = verifier.score([Item(response="it is \\boxed{18}", answer="18", prompt="What is 3 times 6?")])
verifier.close()
```
"""

from driftproof.errors import VerifierError, unknown_name
from driftproof.verify.exact import ExactVerifier
from driftproof.verify.pool import VerifierPool
from driftproof.verify.protocol import Item, Verifier

_FUNCTIONS = {
    "math": "driftproof.verify.math:math",
    "math-boxed": "driftproof.verify.math:boxed",
    "math-hashes": "driftproof.verify.math:hashes",
    "math-number": "driftproof.verify.math:number",
}
"""The last three take the final answer from one place only: the last box, the last `####`, the last number."""

__all__ = ["Item", "Verifier", "VerifierError", "VerifierPool", "build"]


def build(name: str, *, processes: int = 1, timeout_seconds: float = 5.0) -> Verifier:
    """The verifier called `name`: "exact", "math" (or "math-boxed", "math-hashes", "math-number"), or your own
    "package.module:function", ready to score.

    "exact" runs in this process; the others in a pool of `processes` processes, `timeout_seconds` for each answer.
    VerifierError for an unknown name, listing the valid ones, a verifier that cannot be imported, a value out of range.
    """
    if name == "exact":
        return ExactVerifier()
    if name in _FUNCTIONS or ":" in name:
        function = _FUNCTIONS.get(name, name)
        return VerifierPool(function, processes=processes, timeout_seconds=timeout_seconds)
    valid = ("exact", *_FUNCTIONS)
    raise VerifierError(unknown_name("verifier", name, valid) + ", or your own 'package.module:function'")
