r"""Whether two LaTeX expressions are mathematically equal.

Math-Verify reads them and compares sets and solutions. Two values it calls equal within 15 digits of one, and two
equations by one of their solutions; here they are compared exactly, so that `10^{-400}` is not `10^{-401}`.
"""

import logging
import re
from typing import Any

import sympy
from latex2sympy2_extended.logic import And
from math_verify import verify
from sympy.core.relational import Relational

from driftproof.verify.answers.equations import equal_relations
from driftproof.verify.answers.numbers import Number, read_number, same_number
from driftproof.verify.answers.parsing import parsed
from driftproof.verify.answers.values import equal_values, is_value

# It warns once in every process that its own time limits are off; the pool has the limit.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_LOOSE_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")


def equal_expressions(gold: str, found: str) -> bool:
    """Whether two expressions have one value, are one equation or one set; what cannot be read is equal to itself."""
    if _LOOSE_SPACE.sub("", gold) == _LOOSE_SPACE.sub("", found) != "":
        return True
    numbers = read_number(gold), read_number(found)
    if numbers[0] and numbers[1]:
        return same_number(numbers[0], numbers[1])
    a, b = parsed(gold), parsed(found)
    return a is not None and b is not None and _equal(a, b, numbers)


def _equal(a: Any, b: Any, numbers: tuple[Number | None, Number | None]) -> bool:
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        pairs = zip(a.flat(), b.flat(), strict=False)
        return a.shape == b.shape and all(_equal(x, y, (None, None)) for x, y in pairs)
    if a.has(sympy.zoo, sympy.nan) or b.has(sympy.zoo, sympy.nan):
        return False
    if a == b:
        return True
    if is_value(a) and is_value(b):
        return equal_values(a, b, numbers)
    relations = [isinstance(one, Relational | And) for one in (a, b)]
    if any(relations):
        return all(relations) and equal_relations(a, b)
    if a.has(sympy.Sum, sympy.Product, sympy.Integral) or b.has(sympy.Sum, sympy.Product, sympy.Integral):
        return False
    return bool(verify(a, b, timeout_seconds=None, allow_set_relation_comp=True))
