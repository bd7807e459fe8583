r"""Mathematics: the benchmarks of the field, to evaluate on, and training sets in the style of MATH and DAPO.

Prompts are made in one way for all of them: `template` with the problem in it, behind `shots` worked examples, which
show a base model how an answer is written. The gold answer of a worked solution is what its last `\boxed{}` holds.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from driftproof.errors import TaskError
from driftproof.tasks.answers import last_boxed
from driftproof.tasks.protocol import Task, numbered, task_of_file
from driftproof.tasks.rows import Row, read_rows
from driftproof.types import Prompt

TEMPLATE = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}."

BENCHMARKS = {
    "math500": "hf:HuggingFaceH4/MATH-500:test",
    "aime24": "hf:HuggingFaceH4/aime_2024:train",
    "aime25": "hf:math-ai/aime25:test",
    "amc23": "hf:math-ai/amc23:test",
    "minerva": "hf:math-ai/minervamath:test",
}
"""The places where they are published."""

EXAMPLES = (
    ("What is the area of a rectangle with sides 7 and 12?", "The area is 7 * 12 = 84. The answer is \\boxed{84}."),
    ("Solve 3x + 5 = 4.", "Subtracting 5 gives 3x = -1, so x = -1/3. The answer is \\boxed{-\\frac{1}{3}}."),
    ("Expand (x - 2)(x + 5).", "x^2 + 5x - 2x - 10 = x^2 + 3x - 10. The answer is \\boxed{x^2 + 3x - 10}."),
    ("A fair die is thrown twice. What is the probability that both throws are sixes?",
     "The throws are independent: 1/6 * 1/6 = 1/36. The answer is \\boxed{\\frac{1}{36}}."),
)  # fmt: skip


def benchmark(
    name: str, path: str | Path | None = None, *, shots: int = 0, template: str = TEMPLATE, system: str = ""
) -> Task:
    """A benchmark of `BENCHMARKS`: all its problems are held out, none is trained on.

    `path` is a local file of JSON lines or Parquet, or another dataset; by default it comes from Hugging Face. `shots`
    of the 4 worked examples stand before each problem, which takes the place of `{problem}` in `template`.
    """
    read = _reader(("problem", "question"), ("answer", "solution"), shots, template, system)
    return Task(name=name, train=(), heldout=numbered(read(path or BENCHMARKS[name])), verifier="math")


def math(
    path: str | Path,
    *,
    problem_field: str = "problem",
    answer_field: str = "answer",
    heldout: int | str | Path = 256,
    seed: int = 0,
    verifier: str = "math",
    shots: int = 0,
    template: str = TEMPLATE,
    system: str = "",
) -> Task:
    r"""Problems to train on, from JSON lines, Parquet or a dataset `hf:NAME:SPLIT`.

    `problem_field` and `answer_field` name the columns; a dot reaches into a column, as in `reward_model.ground_truth`.
    An answer that holds a `\boxed{}` is a worked solution. `heldout` is a count, drawn by `seed`, or another source.
    """
    read = _reader((problem_field,), (answer_field,), shots, template, system)
    return task_of_file("math", read, path, heldout, seed, verifier)


def _reader(
    problem_fields: tuple[str, ...], answer_fields: tuple[str, ...], shots: int, template: str, system: str
) -> Callable[[str | Path], Iterator[Prompt]]:
    """A function that reads the prompts of a source, each from the first of these columns that its row has."""
    if not 0 <= shots <= len(EXAMPLES):
        raise TaskError(f"shots is {shots}; it must be between 0 and {len(EXAMPLES)}")
    if "{problem}" not in template:
        raise TaskError(f"template is {template!r}; it must say where the problem goes: {{problem}}")
    worked = "".join(f"{template.replace('{problem}', asked)}\n{solution}\n\n" for asked, solution in EXAMPLES[:shots])
    example = f'{{"{problem_fields[0]}": "What is 6 times 7?", "{answer_fields[0]}": "42"}}'

    def read(source: str | Path) -> Iterator[Prompt]:
        for row in read_rows(source, example):
            text = worked + template.replace("{problem}", _column(row, problem_fields))
            yield Prompt(index=0, text=text, answer=_gold(row, _column(row, answer_fields)), system=system)

    return read


def _column(row: Row, names: tuple[str, ...]) -> str:
    """The text of the first column that is there; numbers, as datasets have them, are written out."""
    name = next((name for name in names if name.partition(".")[0] in row.fields), names[0])
    first, *path = name.split(".")
    value = row.value(first)
    for part in path:
        if not isinstance(value, dict) or part not in value:
            raise row.error(f'the field "{name}" is missing')
        value = value[part]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return row.filled(name, value)


def _gold(row: Row, answer: str) -> str:
    if "\\boxed" not in answer:
        return answer
    gold = last_boxed(answer)
    if gold is None or not gold.strip():
        raise row.error("the solution has no closed \\boxed{} with an answer in it")
    return gold.strip()
