"""Verifiers as users write them, good and bad. The pool's processes import this module by name."""

import contextlib
import math
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

CONSTANT = 3


def behave(text: str, answer: str) -> object:
    """Does what `text` says; any other text is the reward itself."""
    print("a verifier may print")
    match text:
        case "hang":
            while True:
                pass
        case "raise":
            raise KeyError("a verifier's own mistake")
        case "exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(4)
        case "killed":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            return 1.0
        case "nan":
            return math.nan
        case "inf":
            return -math.inf
        case "huge":
            return 10**400
        case "text":
            return "1.0"
        case "nothing":
            return None
        case "true":
            return True
        case "pid":
            return os.getpid()
        case "threads":
            return len(list(Path("/proc/self/task").iterdir()))
        case "input":
            return len(sys.stdin.read())
        case "long":
            return float(len(answer))
    return float(text)


def meet(text: str, answer: str) -> float:
    """Returns only when another process is in this function with `text` and `answer` exchanged."""
    Path(text).touch()
    while not Path(answer).exists():
        time.sleep(0.01)
    return 1.0


def leave_pid(text: str, answer: str) -> float:
    """Writes its process id into the file `text`, then does what `answer` says."""
    unfinished = Path(text + ".unfinished")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(text)
    if answer == "loop":
        while True:
            pass
    if answer == "sleep":
        time.sleep(1000)
    if answer == "regular expression":
        re.match(r"(a+)+$", "a" * 100 + "b")
    if answer == "grandchild":
        subprocess.run([sys.executable, "-c", f"import foreign_verifiers as f; f.leave_pid({text + '2'!r}, 'sleep')"])
    return 1.0


def trl_style(completions: list[str], answer: list[str], prompts: list[str], **columns: object) -> list[float]:
    """As TRL's trainers call it; a quarter for a wrong answer to a question that has a star."""
    return [
        1.0 if completion == right else 0.25 * ("*" in prompt)
        for completion, right, prompt in zip(completions, answer, prompts, strict=True)
    ]


def reads_prompts(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """As TRL's trainers call it; what a response is worth depends on the prompt that it sees."""
    return [
        10.0 * int(prompt.partition("+")[0]) + len(completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def dies_once(text: str, answer: str) -> float:
    if text and not Path(text).exists():
        Path(text).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


JUNK = {
    "long": b"1" * (3 << 20),
    "no json": b"{nonsense}\n",
    "pickle": pickle.dumps(print, protocol=0) + b"\n",
    "not a number": b'{"rewards": [["1.0"]]}\n',
    "a list": b"[1.0]\n",
    "no cause": b'{"problem": "?"}\n',
}


def interferes(text: str, answer: str) -> float:
    """Writes something else to the pool than its process does, wherever it finds the way to it."""
    if text in JUNK:
        for entry in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(entry.stat().st_mode):
                    os.write(int(entry.name), JUNK[text])
        time.sleep(0.2)
    return 1.0
