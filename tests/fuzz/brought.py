"""More doors: what people bring as they found it, rows of other projects, chat templates, names of models, answers."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from driftproof import tasks
from driftproof.config import load_config
from driftproof.errors import CodecError, ConfigError, ModelError, TaskError
from driftproof.slips import COMMANDS, SETTINGS, meant_command
from driftproof.tasks.codec import Codec
from driftproof.tasks.recorded import read_recorded
from driftproof.types import Prompt
from driftproof.verify.answers import extract, reading
from driftproof.weights.hub import find_model
from tests.fuzz.inputs import changed_bytes, changed_tree, words
from tests.fuzz.parsers import ROOT, Changed, Parser, model_directory, setting_names, with_change

JUDGE_SECONDS = 5
"""Time that a verifier may take, as in a run."""

# Rows as other projects have them, and files as they are found.

USER, RIGHT = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}
VERL = {"data_source": "x", "prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}, "extra_info": {}}
OTHERS: list[dict[str, Any]] = [
    VERL,
    {"prompt": [{"role": "system", "content": "Add."}, USER], "answer": 2},
    {"messages": [USER, RIGHT], "answer": 2.0},
    {"messages": [USER, RIGHT, USER, RIGHT]},
    {"prompt": [USER], "completion": [RIGHT], "answer": "2", "level": 3},
]
TRACES: list[dict[str, Any]] = [
    {"prompt": "1+1=", "answer": 2, "completions": ["2", "3"], "rewards": [1, None]},
    {"prompt": [USER], "completion": [RIGHT], "reward": 1.0},
    {"prompt": "1+1=", "completion": "2", "label": True},
    {"messages": [USER, RIGHT], "reward": 0.5},
    {"messages": [USER], "choices": [{"message": RIGHT, "finish_reason": "stop"}, {"text": "3"}], "rewards": [1, 0]},
]
NOT_PARQUET = "lines under the name of Parquet"
FORMS = ("lines", "array", "gzip", "byte order mark", "UTF-16", NOT_PARQUET)


def written(form: str, content: bytes, directory: Path) -> Path:
    """A file with these lines in one of the forms in which people have them."""
    if form == "array":
        content = b"[" + b",\n".join(content.split(b"\n")) + b"]"
    elif form == "gzip":
        content = gzip.compress(content, 1)
    elif form == "byte order mark":
        content = b"\xef\xbb\xbf" + content
    elif form == "UTF-16":
        content = content.decode(errors="replace").encode("utf-16")
    path = directory / {"array": "rows.json", NOT_PARQUET: "rows.parquet"}.get(form, "rows.jsonl")
    path.write_bytes(content)
    return path


def _other_rows(value: tuple[str, bytes], directory: Path) -> None:
    task = tasks.build("jsonl", path=written(*value, directory), heldout=1)
    for prompt in (*task.train, *task.heldout):
        prompt.text.encode()
        assert prompt.answer.strip()
        json.dumps(dict(prompt.columns))


def _traces(value: tuple[str, bytes], directory: Path) -> None:
    for group in read_recorded(written(*value, directory)):
        assert len(group.texts) == len(group.rewards)


def files_of(rows: list[dict[str, Any]]) -> st.SearchStrategy[tuple[str, bytes]]:
    whole = b"\n".join(json.dumps(row).encode() for row in rows * 2)
    one_style = st.sampled_from(rows).map(lambda row: b"\n".join([json.dumps(row).encode()] * 4))
    by_value = st.lists(changed_tree(rows), min_size=2, max_size=6).map(
        lambda changed: b"\n".join(json.dumps(row).encode() for row in changed)
    )
    return st.tuples(st.sampled_from(FORMS), changed_bytes([whole]) | one_style | by_value)


# Chat templates: programs of a model's author.

TEMPLATES = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ messages[-1]['content'] }}",
    "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}{{ m.content | trim }}"
    "{%- endfor -%}{{ ns.n }}{{ '\x1b[2J' }}{{ strftime_now('%Y') }}",
    "{{ messages[0].content * 9 }}{{ messages | tojson }}{{ enable_thinking | default('x') }}",
)
PIECES = ("{{", "}}", "{%", "%}", "messages", "[0]", ".__class__", "range(99999)", "for i in", "endfor", "|", "* 10**9")


@st.composite
def templates(draw: st.DrawFn) -> tuple[str, bool]:
    """A template, and whether the prompt has a system message."""
    text = draw(changed_bytes([template.encode() for template in TEMPLATES])).decode(errors="replace")
    for piece in draw(st.lists(st.sampled_from(PIECES), max_size=2)):
        place = draw(st.integers(0, len(text)))
        text = f"{text[:place]}{piece}{text[place:]}"
    return text, draw(st.booleans())


def _template(value: tuple[str, bool], directory: Path) -> None:
    text, with_system = value
    file = model_directory() / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"chat_template": text}
    prompt = Prompt(index=0, text="1+1=", answer="2", system="Add." if with_system else "")
    with with_change(Changed(file.name, json.dumps(config).encode()), directory) as path:
        codec = Codec(path)
        assert len(codec.encode(prompt)) > 0
        assert codec.render(prompt)


# Names of models and settings.

NAMES = (
    "owner/name",
    "owner/name@main",
    "models--a--b/snapshots/" + "0" * 40,
    "../a/b",
    "a//b",
    "name@",
    "@x",
    "a/b/c",
)
REVISIONS = st.none() | words | st.sampled_from(("main", "../..", "0" * 40))


def _hub_name(value: tuple[str, str | None], directory: Path) -> None:
    name, revision = value
    if not Path(name).exists():
        assert isinstance(find_model(Path(name), revision), Path)


@st.composite
def misspelled(draw: st.DrawFn) -> list[str]:
    """Settings with a slip: other names for them, letters that are missing, doubled or exchanged."""
    found = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*setting_names(), *(f"--{other}" for other in SETTINGS)]))
        place = draw(st.integers(2, len(name) - 1))
        slip = draw(st.sampled_from(("", name[place] * 2, "_", "-", ".", "é", " ")))
        found += [f"{name[:place]}{slip}{name[place + 1 :]}", draw(words | st.sampled_from(("1", "true", "1e-3")))]
    return found


RIGHT_SETTING = st.just(["--run.steps", "3"])


def _misspelled(arguments: list[str], directory: Path) -> None:
    load_config(ROOT / "recipes" / "quickstart.toml", ["--model.path=model", *arguments])


def _command(word: str, directory: Path) -> None:
    assert isinstance(meant_command(word, ("train", "report", "groups")), str)


# Answers in responses.

RESPONSES = (
    "so \\boxed{\\frac{1}{2}}",
    "<think>7</think><answer>$x = 3\\frac{1}{2}\\text{ cm}^2$</answer>",
    "The answer is 1,234.50 dollars.\n#### 72 clips",
    "$$\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}$$ and (-\\infty, 3] \\cup \\{5\\}",
    "**Final answer:** x ∈ [0, 1) or x ≥ √2, 12:30 p.m., 0.\\overline{3}, 1011_2, 3 1/2, 5×10^{-3}",
    "\\boxed{A, C} \\boxed{\\text{Tuesday}} $9^{9^{9}}$ 2^{10} 5! \\binom{5}{2} \\sqrt[3]{8} e^{i\\pi}",
)
GOLDS = (
    "\\frac{1}{2}",
    "3.5",
    "1234.5",
    "(-\\infty,3]\\cup\\{5\\}",
    "x=\\sqrt{2}",
    "A,C",
    "\\text{Tuesday}",
    "2+3i",
    "72",
)
MARKUP = ("\\boxed{", "}", "$", "####", "\\frac", "{", "\\left(", "^", "_", ",", "\\text{", "<answer>", "</think>", "−")


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, str]:
    """A gold answer and a response, both nearly right."""
    texts = []
    for originals in (GOLDS, RESPONSES + GOLDS):
        text = draw(changed_bytes([each.encode() for each in originals])).decode(errors="replace")
        for piece in draw(st.lists(st.sampled_from(MARKUP), max_size=3)):
            place = draw(st.integers(0, len(text)))
            text = f"{text[:place]}{piece * draw(st.sampled_from((1, 1, 2, 500)))}{text[place:]}"
        texts.append(text)
    return texts[0], texts[1]


def _extracted(value: tuple[str, str], directory: Path) -> None:
    gold, response = value
    for text in (gold, response):
        found = [*extract.answers(text), *extract.boxed(text, 2), *extract.hashed(text)]
        for answer in found:
            reading.read(answer[:2000])
        reading.read(text[:2000])


def _judged(value: tuple[str, str], directory: Path) -> None:
    from driftproof.verify import math

    with within(JUDGE_SECONDS):
        for judge in (math.math, math.boxed, math.hashes, math.number):
            assert judge(value[1], value[0]) in (0.0, 1.0)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so long, where a run ends the verifier's process."""

    def stop(*_: object) -> None:
        raise TimeoutError("a response that takes so long gets 0")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def brought() -> list[Parser]:
    """All doors of this page."""
    return [
        Parser(name="rows of others", parse=_other_rows, refuses=(TaskError,), inputs=files_of(OTHERS)),
        Parser(name="traces of others", parse=_traces, refuses=(TaskError,), inputs=files_of(TRACES)),
        Parser(
            name="chat templates",
            parse=_template,
            refuses=(CodecError, ModelError, ConfigError),
            inputs=templates(),
            slow=True,
        ),
        Parser(
            name="names of models",
            parse=_hub_name,
            refuses=(ModelError,),
            inputs=st.tuples(changed_bytes([name.encode() for name in NAMES]).map(_text), REVISIONS),
        ),
        Parser(
            name="settings with slips",
            parse=_misspelled,
            refuses=(ConfigError,),
            inputs=misspelled() | st.just(["--run.steps", "3"]),
        ),
        Parser(
            name="commands with slips",
            parse=_command,
            refuses=(),
            inputs=changed_bytes([command.encode() for command in COMMANDS]).map(_text),
        ),
        Parser(name="answers, read", parse=_extracted, refuses=(), inputs=answers()),
        Parser(name="answers, judged", parse=_judged, refuses=(ValueError, TimeoutError), inputs=answers(), slow=True),
    ]


def _text(content: bytes) -> str:
    return content.decode(errors="replace")
