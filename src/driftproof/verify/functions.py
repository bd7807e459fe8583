"""Reward functions as people write them, called in a verifier's process: of our form, of TRL's and of verl's.

The names of a function's parameters say what it is given, and nothing else does; a function that asks for something
that nobody gives is refused by name. Whatever it returns (numbers, a list, an array, a tensor, all of them perhaps from
a coroutine) becomes floats, or None where it gives no reward on purpose.

Sources: TRL 1.16, `GRPOTrainer._calculate_rewards`; verl 0.9, `NaiveRewardManager`.
"""

import asyncio
import importlib
import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

Fields = Mapping[str, Any]
"""Facts about a response, by the names of an `Item`'s fields."""
Parameters = Mapping[str, inspect.Parameter]
Rewards = list[float | None]

RESPONSE = frozenset({
    "text", "response", "completion", "output", "prediction", "pred", "candidate", "generation", "generated",
    "generated_text", "model_output", "model_response", "reply", "hypothesis",
})  # fmt: skip
"""Names of a first parameter that is the response."""
ANSWER = frozenset({
    "answer", "gold", "ground_truth", "target", "label", "reference", "expected", "truth", "solution", "gt", "ref",
    "gold_answer", "correct_answer", "right_answer", "reference_answer", "expected_answer", "",
})  # fmt: skip
"""Names of a second parameter that is the answer; one of underscores alone is not used."""
VERLS = frozenset({"data_source", "solution_str", "ground_truth", "extra_info"})
TRLS_OWN = frozenset({"prompt", "completion", "completion_ids"})
"""Columns that TRL does not pass on."""
NOBODY_GIVES = frozenset({"prompt", "completion", "trainer_state", "log_extra", "log_metric", "environments"})
"""Keywords that a function of TRL's form cannot have: the first two by TRL's rule, the others belong to its trainer."""
VALID = (
    "valid: (text, answer) or (response, answer); TRL's (completions, **columns); "
    "verl's (data_source, solution_str, ground_truth, extra_info)"
)
MOST_SHOWN = 300
"""Characters of a foreign message or value that are passed on."""


class NoRewardError(ValueError):
    """A function returned something that is no reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFunction:
    """A function of the user, and how it is called."""

    name: str
    needs: frozenset[str]
    """Fields of an item."""
    call: Callable[[Sequence[Fields]], Any]
    """Given one response, or several where it `compares`; what the function returned, or something to wait for."""
    read: Callable[[Any, int], Rewards]
    """From what the function returned for so many responses to their rewards; NoRewardError where they are none."""
    compares: bool = False
    """Whether it can be given several responses at once."""


def load(name: str) -> RewardFunction:
    """The function at `package.module:function`; TypeError where its parameters are not those of a known form."""
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"{attribute} is a {type(function).__name__}, not a function; {VALID}")
    try:
        parameters: Parameters = inspect.signature(function).parameters
    except ValueError:  # some built-in functions have no signature
        return _ours(name, function)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {p.name for p in parameters.values() if p.default is p.empty and p.kind not in variable}
    first, second = [*parameters, "", "-"][:2]
    if "solution_str" in parameters:
        found, never = _verls(name, function, parameters), needed - VERLS
    elif first.strip("_") in RESPONSE and second.strip("_") in ANSWER:
        found, never = _ours(name, function), needed - {first, second}
    elif "completions" in parameters or _takes_all(parameters):
        found, never = _trls(name, function, parameters, needed), needed & NOBODY_GIVES
    else:
        shown_ = ", ".join(map(str, parameters.values()))[:MOST_SHOWN]
        raise TypeError(
            f"{attribute}({shown_}): the names of its parameters do not say what it is to be given; {VALID}"
        )
    if never:
        raise TypeError(f"{attribute} needs {', '.join(sorted(never))}, which nobody gives; {VALID}")
    return found


def score(
    functions: Sequence[RewardFunction], items: Sequence[Fields], loop: asyncio.AbstractEventLoop
) -> list[Rewards]:
    """The rewards of each response by each function; what has to be waited for is waited for at once.

    Whatever a function raises is raised; a note says which of several it was. NoRewardError for what is no reward.
    """
    function, calls = functions[0], list[tuple[RewardFunction, int, Any]]()
    rewards: list[list[float | None]] = [[] for _ in functions]
    try:
        for function in functions:
            for batch in [items] if function.compares else [[item] for item in items]:
                calls.append((function, len(batch), function.call(batch)))
        waiting = [result for *_, result in calls if inspect.isawaitable(result)]
        answers = iter(loop.run_until_complete(_all(waiting)) if waiting else ())
        for function, count, result in calls:
            answer = next(answers) if inspect.isawaitable(result) else result
            if isinstance(answer, BaseException):
                raise answer
            rewards[functions.index(function)] += function.read(answer, count)
    except BaseException as error:
        if len(functions) > 1:
            error.add_note(function.name)
        raise
    return [list(of_item) for of_item in zip(*rewards, strict=True)]


async def _all(waiting: Sequence[Awaitable[Any]]) -> Sequence[Any]:
    return await asyncio.gather(*waiting, return_exceptions=True)


def describe(error: BaseException) -> str:
    """An error in a text of bounded length."""
    said = str(error) if isinstance(error, NoRewardError) else f"{type(error).__name__}: {error}"
    return ": ".join([*getattr(error, "__notes__", ()), said])[:MOST_SHOWN]


def _ours(name: str, function: Callable[..., Any]) -> RewardFunction:
    return RewardFunction(
        name=name,
        needs=frozenset({"response", "answer"}),
        call=lambda items: function(items[0]["response"], items[0]["answer"]),
        read=lambda result, _: [number(result)],
    )


def _verls(name: str, function: Callable[..., Any], parameters: Parameters) -> RewardFunction:
    def call(items: Sequence[Fields]) -> Any:
        columns, answer = items[0]["columns"], items[0]["answer"]
        rules = columns.get("reward_model")
        given = {
            "data_source": columns.get("data_source", ""),
            "solution_str": items[0]["response"],
            "ground_truth": rules.get("ground_truth", answer) if isinstance(rules, Mapping) else answer,
            "extra_info": dict(columns.get("extra_info") or {}),
        }
        return function(**{key: value for key, value in given.items() if key in parameters or _takes_all(parameters)})

    def read(result: Any, _: int) -> Rewards:
        if not isinstance(result, Mapping):
            return [number(result)]
        if "score" not in result:
            raise NoRewardError(f"verifier returned {shown(result)}, which has no 'score'")
        return [number(result["score"])]

    return RewardFunction(name=name, needs=frozenset({"response", "answer", "columns"}), call=call, read=read)


def _trls(name: str, function: Callable[..., Any], parameters: Parameters, needed: set[str]) -> RewardFunction:
    takes_all = _takes_all(parameters)
    needs = {"response", "answer", "prompt", "messages", "columns"}
    if takes_all or "completion_ids" in parameters:
        needs.add("tokens")

    def call(items: Sequence[Fields]) -> Any:
        rows = [_keywords(item) for item in items]
        taken = [key for key in rows[0] if takes_all or key in parameters]
        if missing := sorted(needed.difference(taken)):
            there = ", ".join(sorted(items[0]["columns"])) or "none"
            raise TypeError(
                f"it needs {', '.join(missing)}; the prompt's row does not have that column, it has {there}"
            )
        return function(**{key: [row.get(key) for row in rows] for key in taken})

    return RewardFunction(name=name, needs=frozenset(needs), call=call, read=listed, compares=True)


def _keywords(item: Fields) -> dict[str, Any]:
    """Everything that TRL's trainer would give a function for one response."""
    text, chat = item["response"], item["messages"]
    return {
        "answer": item["answer"],
        **{key: value for key, value in item["columns"].items() if key not in TRLS_OWN},
        "prompts": chat or item["prompt"],
        "completions": [{"role": "assistant", "content": text}] if chat else text,
        **({"completion_ids": item["tokens"]} if "tokens" in item else {}),
    }


def listed(result: Any, count: int) -> Rewards:
    """The `count` rewards that a function of TRL's form returned."""
    entries = result.tolist() if hasattr(result, "tolist") else result  # an array or a tensor, wherever it lies
    if isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Iterable):
        raise NoRewardError(_no_list(count, shown(result)))
    found = list(islice(entries, count + 1))
    if len(found) != count:
        raise NoRewardError(_no_list(count, f"{shown(found)} of {'more' if len(found) > count else len(found)}"))
    # An array has no place for None; a number that is none stands for it.
    return [None if isinstance(entry, float) and math.isnan(entry) else number(entry) for entry in found]


def _no_list(count: int, found: str) -> str:
    s = "s" if count > 1 else ""
    return f"for {count} completion{s} the reward function must return a list of {count} number{s}, not {found}"


def number(value: Any) -> float | None:
    """A finite number as a float; None stays None."""
    if value is None:
        return None
    if not isinstance(value, numbers.Real) and hasattr(value, "item"):
        value = value.item()  # a boolean of numpy, a tensor of one number
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise NoRewardError(f"verifier returned {shown(value)}; a reward must be a finite number")


def shown(value: Any) -> str:
    """A foreign value, cut short."""
    return repr(value)[:MOST_SHOWN]


def _takes_all(parameters: Parameters) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
