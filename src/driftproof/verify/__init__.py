"""Rewards. A verifier is a function of (text, answer), the response's text and the right answer, that returns a number.

Reward functions of TRL's form, `(completions, **columns) -> list[float]`, and of verl's, `(data_source, solution_str,
ground_truth, extra_info) -> float`, are verifiers as they are; several of them add up.

```python
from driftproof.verify import Item, build
verifier = build("math", processes=2, timeout_seconds=5.0)     # or "exact", or your own "package.module:function"
verdicts = verifier.score([Item(response="it is \\boxed{18}", answer="18", prompt="What is 3 times 6?")])
verifier.close()
```
"""

from collections.abc import Sequence

from driftproof.errors import VerifierError, unknown_name
from driftproof.verify.exact import ExactVerifier
from driftproof.verify.pool import OnTimeout, VerifierPool, checked_weights, labels_of
from driftproof.verify.protocol import Item, Verifier
from driftproof.verify.settings import DEFAULT_MEMORY_GIB

_FUNCTIONS = {
    "exact": "driftproof.verify.exact:exact",
    "math": "driftproof.verify.math:math",
    "math-boxed": "driftproof.verify.math:boxed",
    "math-hashes": "driftproof.verify.math:hashes",
    "math-number": "driftproof.verify.math:number",
}
"""The last three take the final answer from one place only: the last box, the last `####`, the last number."""
BUILT_IN = frozenset(_FUNCTIONS)
"""Verifiers that give 1.0 to the gold answer."""

__all__ = ["BUILT_IN", "Item", "Verifier", "VerifierError", "VerifierPool", "build"]


def build(
    name: str | Sequence[str],
    *,
    weights: Sequence[float] = (),
    processes: int = 1,
    timeout_seconds: float = 5.0,
    on_timeout: OnTimeout = "zero",
    memory_gib: float = DEFAULT_MEMORY_GIB,
    together: bool = False,
) -> Verifier:
    """The verifier called `name`: "exact", "math" (or "math-boxed", "math-hashes", "math-number"), your own
    "package.module:function", or a list of such names with a weight each, ready to score.

    "exact" alone runs in this process; the others in a pool of `processes` processes: see `VerifierPool`.
    VerifierError for an unknown name, listing the valid ones, a verifier that cannot be imported, a value out of range.
    """
    names = (name,) if isinstance(name, str) else tuple(name)
    for one in names:
        if one not in _FUNCTIONS and ":" not in one:
            raise VerifierError(unknown_name("verifier", one, _FUNCTIONS) + ", or your own 'package.module:function'")
    weights = checked_weights(names, weights)
    if names == ("exact",) and weights == (1.0,):
        return ExactVerifier()
    return VerifierPool(
        [_FUNCTIONS.get(one, one) for one in names],
        processes=processes,
        timeout_seconds=timeout_seconds,
        weights=weights,
        labels=labels_of(names),
        on_timeout=on_timeout,
        memory_gib=memory_gib,
        together=together,
    )
