"""Values of settings: what was typed, what it is taken for, and what no file system or ledger could take.

Guarantees: a setting that is a text or a path is what was typed, be it a number, a date or `true`; a number is never
made of a truth value.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from driftproof.errors import ConfigError

MAY_BE_INFINITE = {"learner.max_grad_norm", "runtime.stall_seconds", "runtime.start_seconds"}
ANY_SIZE = {"run.seed"}
BELOW = 10**8
"""Whole numbers of other settings are below it: the ledger takes no larger ones."""
SHOWN = 100
"""Characters of a value that a message repeats."""


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, str, Any]]:
    """[(section, key, value)] of `--section.key value` arguments; values are read as TOML where they can be."""
    return [(section, key, _value(text)) for section, key, text in split_overrides(arguments)]


def split_overrides(arguments: Sequence[str]) -> list[tuple[str, str, str]]:
    """[(section, key, text)] of `--section.key value` arguments."""
    overrides, words = [], iter(arguments)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        section, dot, key = name.partition(".")
        if not (word.startswith("--") and dot and section and key):
            raise ConfigError(f"unexpected argument {word!r}; settings are given as --section.key value")
        if not equals and (value := next(words, "--")).startswith("--"):
            raise ConfigError(f"{word} needs a value: {word} VALUE")
        overrides.append((section, key, value))
    return overrides


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # also an integer of thousands of digits, nested too deeply
        return text
    return table["value"] if len(table) == 1 else text


def given(text: str, hint: Any) -> Any:
    """The value of a setting on the command line: for texts and paths what was typed, quotes of TOML removed."""
    value = _value(text)
    takes_text = hint is not None and _plain(hint) <= {str, Path}
    return text if takes_text and not isinstance(value, (str, list)[: 1 + _takes_several(hint)]) else value


def _takes_several(hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _takes_several(arguments[0])
    return any(map(_takes_several, arguments)) if origin in (Union, UnionType) else origin is tuple


def _plain(hint: Any) -> set[Any]:
    """The types of single values that a setting may hold, but None."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(arguments[0])
    if origin is Literal:
        return {type(value) for value in arguments}
    if origin in (Union, UnionType, tuple):
        return {plain for argument in arguments if argument is not ... for plain in _plain(argument)}
    return {hint} - {NoneType}


def problems(tree: Mapping[str, Any], kinds: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Setting and line for each value that would be taken for another, or that no file system or ledger could take."""
    for section, table in tree.items():
        for key, value in table.items() if isinstance(table, dict) else ():
            name = f"{section}.{key}"
            plain = _plain(kinds[name]) if name in kinds else set()
            for part in _leaves(value):
                if (
                    problem := _text_problem(part, plain)
                    if isinstance(part, str)
                    else _number_problem(part, name, plain)
                ):
                    yield name, f"{name} = {shown(value)}: {problem}"
                    break


def expand_home(tree: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Write out the home directory in paths, which a shell does not do behind `=` and in recipes."""
    for section, table in tree.items():
        for key, value in table.items() if isinstance(table, dict) else ():
            hint = kinds.get(f"{section}.{key}")
            if isinstance(value, str) and value.startswith("~/") and hint is not None and Path in _plain(hint):
                table[key] = str(Path(value).expanduser())


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | dict):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _text_problem(text: str, plain: set[Any]) -> str:
    if "\0" in text:
        return "it has a NUL character"
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return "it is not valid UTF-8"
    if Path in plain and not text.strip():
        return "it is empty; give a path, or leave the setting out"
    if plain and plain <= {str, Path} and any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in text):
        return "it has a control character"
    return ""


def _number_problem(value: Any, name: str, plain: set[Any]) -> str:
    if isinstance(value, bool) and plain & {int, float} and bool not in plain:
        return "input should be a number"
    if isinstance(value, float) and math.isinf(value) and plain & {int, float} and name not in MAY_BE_INFINITE:
        return "input should be a finite number"
    if isinstance(value, int) and abs(value) >= BELOW and int in plain and name not in ANY_SIZE:
        return f"input should be below {BELOW:,}"
    return ""


def shown(value: Any) -> str:
    """A value as a recipe would have it, but for texts, which are quoted as Python does."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value) if hasattr(value, "isoformat") else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
