r"""Whether two equations or inequalities say the same.

They do where one is the other times a number (`3x+6y=5` and `y=-\frac{x}{2}+\frac{5}{6}`), once both are free of
denominators, or where they have one variable and Math-Verify finds the same solutions.
"""

from typing import Any

import sympy
from latex2sympy2_extended.logic import And
from math_verify import verify
from sympy.core.relational import Relational

from driftproof.verify.answers.values import at_places, equal_values, is_value

_MOST_OPERATIONS = 60
_ORDERS = {sympy.StrictLessThan: 1, sympy.LessThan: 2, sympy.StrictGreaterThan: -1, sympy.GreaterThan: -2}
"""Kinds of inequality; the opposite number is the same kind read backwards."""


def equal_relations(gold: Any, found: Any) -> bool:
    """Whether two relations that Math-Verify has read are equal."""
    if isinstance(gold, And) and isinstance(found, And):
        chains = [list(one._unsorted_args) for one in (gold, found)]
        ways = (chains[1], chains[1][::-1]) if len(chains[0]) == len(chains[1]) else ()
        return any(all(map(equal_relations, chains[0], way)) for way in ways)
    if not (isinstance(gold, Relational) and isinstance(found, Relational)):
        return bool(gold == found)
    if not all(is_value(side) for relation in (gold, found) for side in (relation.lhs, relation.rhs)):
        return bool(gold == found)
    factor = _factor(gold.lhs - gold.rhs, found.lhs - found.rhs)
    if isinstance(gold, sympy.Eq) and isinstance(found, sympy.Eq):
        if factor is None:
            factor = _factor(_without_denominators(gold), _without_denominators(found))
        return factor is not None or _same_solutions(gold, found)
    kinds = _ORDERS.get(type(gold)), _ORDERS.get(type(found))
    if factor is not None and None not in kinds:
        return kinds[0] == (kinds[1] if factor > 0 else -(kinds[1] or 0))
    if isinstance(gold, sympy.Ne) and isinstance(found, sympy.Ne):
        return factor is not None
    return _same_solutions(gold, found)


def _factor(a: Any, b: Any) -> Any | None:
    """The number that one difference is of the other, at all places; None where there is no such number."""
    if {symbol.name for symbol in a.free_symbols} != {symbol.name for symbol in b.free_symbols}:
        return None
    ratios = [x / y for x, y in at_places(a, b) if x != 0 and y != 0]
    if len(ratios) < 2 or not ratios[0].is_real:
        return None
    return ratios[0] if all(equal_values(ratios[0], ratio) for ratio in ratios[1:]) else None


def _without_denominators(relation: Any) -> Any:
    """The difference of an equation's sides, times what it divides by: of `y = 1/x` it is `xy - 1`."""
    difference = relation.lhs - relation.rhs
    divides = any(part.exp.is_negative for part in difference.atoms(sympy.Pow) if part.base.free_symbols)
    if not divides or difference.count_ops() > _MOST_OPERATIONS:
        return difference
    return sympy.numer(sympy.together(difference))


def _same_solutions(gold: Any, found: Any) -> bool:
    """Whether two relations of one variable are true for the same numbers, of which there must be one."""
    names = [{symbol.name for symbol in one.free_symbols} for one in (gold, found)]
    if names[0] != names[1] or len(names[0]) != 1 or max(gold.count_ops(), found.count_ops()) > _MOST_OPERATIONS:
        return False
    if isinstance(gold, sympy.Eq) and isinstance(found, sympy.Eq):
        a, b = _solutions(gold), _solutions(found)
        return len(a) == len(b) > 0 and all(any(equal_values(x, y) for y in b) for x in a)
    return bool(verify(gold, found, timeout_seconds=None))


def _solutions(equation: Any) -> list[Any]:
    (symbol,) = equation.free_symbols
    try:
        return list(sympy.solve(equation, symbol))
    except (NotImplementedError, TypeError, ValueError):
        return []
