"""The process in which a verifier runs: `python -m driftproof.verify.child package.module:function LIFELINE`.

Speaks JSON, one object a line. It first writes `{}` (ready) or `{"error": ...}` (the verifier cannot be imported). Then
it reads `[response, answer, prompt]` lines and answers each, in order, with `{"reward": number}` or `{"cause": ...,
"problem": ...}`, the cause as the pool counts it. The process ends when its parent does, however the parent ended and
whatever the verifier is doing, even in C code that never lets go of the interpreter (on Linux; elsewhere once idle).
"""

import contextlib
import fcntl
import importlib
import inspect
import json
import math
import numbers
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Verify = Callable[[str, str, str], Any]
"""A function of response, answer and prompt."""

_MOST_CHARACTERS = 300
"""Characters of a foreign message that are passed on."""


def main() -> None:
    name, lifeline = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(lifeline)
    requests, replies = _take_standard_streams()

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")

    try:
        verify = _load(name)
    except BaseException as error:  # noqa: BLE001 (foreign code; the pool raises what is reported here)
        reply({"error": _describe(error)})
        return
    reply({})
    for line in requests:
        reply(_judge(verify, *json.loads(line)))


def _end_with_parent(lifeline: int) -> None:
    # The parent holds the other end of this pipe. When it closes the kernel sends SIGIO, which ends a process by
    # default; no Python code has to run for that.
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        sys.exit("the verifier's parent process has ended")


def _take_standard_streams() -> tuple[Any, Any]:
    """Keep the channel to the parent, and give foreign code an empty input and standard error to print to."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _load(name: str) -> Verify:
    # Last on the path, so that a verifier beside the recipe is found without an installation.
    sys.path.append(str(Path.cwd()))
    module, _, function = name.partition(":")
    verify = getattr(importlib.import_module(module), function)
    if not callable(verify):
        raise TypeError(f"{function} is a {type(verify).__name__}, not a function of (text, answer)")
    with contextlib.suppress(ValueError):  # some built-in functions have no signature
        parameters = inspect.signature(verify).parameters
        if "completions" in parameters:
            return _from_reward_function(verify, parameters)
    return lambda text, answer, prompt: verify(text, answer)


def _from_reward_function(function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> Verify:
    """A verifier from a function with TRL's signature, given one completion at a time."""
    known = ("completions", "prompts", "answer")
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    needed = {name for name in named if parameters[name].default is inspect.Parameter.empty}
    if unknown := sorted(needed.difference(known)):
        raise TypeError(f"the reward function needs {', '.join(unknown)}; what it can have is {', '.join(known)}")

    def verify(text: str, answer: str, prompt: str) -> Any:
        columns = {"completions": [text], "prompts": [prompt], "answer": [answer]}
        rewards = function(**{name: column for name, column in columns.items() if takes_all or name in named})
        if not isinstance(rewards, Sequence) or len(rewards) != 1:
            raise TypeError(f"for 1 completion the reward function must return a list of 1 number, not {rewards!r}")
        return rewards[0]

    return verify


def _judge(verify: Verify, text: str, answer: str, prompt: str) -> dict[str, Any]:
    try:
        reward = verify(text, answer, prompt)
        if isinstance(reward, numbers.Real) and math.isfinite(reward):
            return {"reward": float(reward)}
        problem = f"verifier returned {repr(reward)[:_MOST_CHARACTERS]}; a reward must be a finite number"
        return {"cause": "invalid_rewards", "problem": problem}
    except BaseException as error:  # noqa: BLE001 (foreign code; the pool counts and shows what is reported here)
        return {"cause": "crashes", "problem": f"verifier crashed: {_describe(error)}"}


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MOST_CHARACTERS]


if __name__ == "__main__":
    main()
