"""Chat templates: prompts to the text that a model was trained to read. A template is a program of the model's author.

Guarantees: a template that refuses a message, leaves one out, or takes more time or memory than a template can need is
refused with a sentence; nothing of a prompt gets lost on the way to the model.
"""

import difflib
import re
import resource
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from driftproof.errors import CodecError, ConfigError
from driftproof.types import Prompt

RENDER_SECONDS = 5.0
"""Computing time of one prompt, in the main thread, where every prompt is first rendered."""
RENDER_BYTES = 2 * 2**30
"""Memory that a template may take for the first prompt of each kind."""
ADDED_CHARACTERS = 2**18
"""Most text that a template adds to a prompt of which it may repeat each character four times."""
_OURS = (
    "conversation",
    "messages",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "sanitize_control_tokens",
)
"""Arguments of transformers' `apply_chat_template` that driftproof decides on."""


class ChatTemplate:
    """The chat template of a tokenizer, with the variables of `model.chat_template_kwargs`."""

    def __init__(self, tokenizer: Any, model: Path, variables: Mapping[str, Any]) -> None:
        """Raises ConfigError for a variable that the template does not have."""
        self._tokenizer = tokenizer
        self._model = model
        self._variables = dict(variables)
        self._tried: set[tuple[bool, bool]] = set()
        """Kinds of prompts, with a system message or earlier turns or without, that are known to be rendered whole."""
        self._check_variables()

    def render(self, prompt: Prompt) -> str:
        """A prompt as text, up to where the response begins; CodecError where the template does not give it."""
        kind = bool(prompt.system), bool(prompt.turns)
        if kind not in self._tried:
            self._try(prompt)
            self._tried.add(kind)
        text = self._apply(prompt, memory=None)
        given = sum(len(message["content"]) for message in chat_messages(prompt))
        if len(text) > 4 * given + ADDED_CHARACTERS:
            self._refuse(prompt, f"makes {len(text):,} characters of a prompt of {given:,}")
        return text

    def _try(self, prompt: Prompt) -> None:
        """Render a prompt like `prompt` whose words can be found again."""
        words = {"user": "driftproofuser", "system": "driftproofsystem" if prompt.system else ""}
        turns = (("user", "driftproofasked"), ("assistant", "driftproofanswered")) if prompt.turns else ()
        marked = replace(prompt, text=words["user"], system=words["system"], turns=turns)
        text = self._apply(marked, memory=RENDER_BYTES)
        for role, word in words.items():
            if word not in text:
                self._refuse(prompt, f"leaves the {role} message out", _WITHOUT_SYSTEM if role == "system" else "")
        if left_out := [role for role, word in turns if word not in text]:
            self._refuse(prompt, f"leaves earlier messages of the {left_out[0]} out")

    def _apply(self, prompt: Prompt, memory: int | None) -> str:
        try:
            with limits(RENDER_SECONDS, memory):
                return str(
                    self._tokenizer.apply_chat_template(
                        chat_messages(prompt), tokenize=False, add_generation_prompt=True, **self._variables
                    )
                )
        except TimeoutError:
            self._refuse(prompt, f"is not done after {RENDER_SECONDS:g} s")
        except MemoryError:
            self._refuse(prompt, f"takes more than {RENDER_BYTES / 2**30:g} GiB of memory")
        except Exception as error:  # noqa: BLE001 (a template raises what it wants; all of it is refused here)
            said = str(error).strip() or type(error).__name__
            if prompt.system and self._takes(replace(prompt, system="")):
                self._refuse(prompt, f"refuses the system message ({said})", _WITHOUT_SYSTEM)
            self._refuse(prompt, f"cannot be applied to the prompt {prompt.text[:60]!r} ({said})")

    def _takes(self, prompt: Prompt) -> bool:
        try:
            self._apply(prompt, memory=RENDER_BYTES)
        except CodecError:
            return False
        return True

    def _refuse(self, prompt: Prompt, problem: str, advice: str = "") -> NoReturn:
        where = f"{prompt.source}: " if prompt.source else ""
        advice = advice or "correct it, or use another model"
        raise CodecError(f"{where}the chat template of {self._model} {problem}; {advice}")

    def _check_variables(self) -> None:
        if ours := sorted(self._variables.keys() & set(_OURS)):
            raise ConfigError(f"model.chat_template_kwargs has {ours[0]!r}, which driftproof decides on; leave it out")
        try:
            chosen = self._variables.get("chat_template"), self._variables.get("tools")
            text = str(self._tokenizer.get_chat_template(*chosen))
        except (ValueError, TypeError, KeyError) as error:
            choice = 'choose one by model.chat_template_kwargs = { chat_template = "NAME" }'
            raise ConfigError(f"{self._model}: {error} ({choice})") from error
        known = set(re.findall(r"[A-Za-z_]\w*", text)) | {"chat_template", "tools", "documents"}
        for name in self._variables.keys() - known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"model.chat_template_kwargs has {name!r}, which the chat template of {self._model} does not use{meant}"
            )


_WITHOUT_SYSTEM = (
    "leave the system message out (its words can stand at the beginning of the question), or use a model whose "
    "template takes one"
)


def chat_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the messages of a chat."""
    return list(prompt.messages)


@contextmanager
def limits(seconds: float, memory: int | None) -> Iterator[None]:
    """Raise TimeoutError once the process has computed for so long in the block, MemoryError once it has taken so many
    bytes more; the time only in the main thread, which alone can be interrupted, the memory only on Linux."""
    with _time_limit(seconds), _memory_limit(memory):
        yield


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signal_number: int, frame: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


@contextmanager
def _memory_limit(memory: int | None) -> Iterator[None]:
    status = Path("/proc/self/statm")
    if memory is None or not status.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(status.read_text().split()[0]) * resource.getpagesize()
    bounds = [used + memory, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
