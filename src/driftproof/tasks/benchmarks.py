r"""Mathematics: the benchmarks of the field, to evaluate on, and training sets in the style of MATH and DAPO.

Prompts are made in one way for all of them: `template` with the problem in it, behind `shots` worked examples, which
show a base model how an answer is written. The gold answer of a worked solution is what its last `\boxed{}` holds.
"""

from pathlib import Path

from driftproof.errors import TaskError
from driftproof.tasks.answers import solution_gold
from driftproof.tasks.conversations import VERL_ANSWER, Form
from driftproof.tasks.files import task_of_file
from driftproof.tasks.protocol import Task, needs_answer, numbered, own_rewards
from driftproof.tasks.rows import Row, shown
from driftproof.tasks.sources import read_rows

TEMPLATE = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}."

BENCHMARKS = {
    "math500": "hf:HuggingFaceH4/MATH-500:test",
    "aime24": "hf:HuggingFaceH4/aime_2024:train",
    "aime25": "hf:math-ai/aime25:test",
    "amc23": "hf:math-ai/amc23:test",
    "minerva": "hf:math-ai/minervamath:test",
}
"""The places where they are published."""

_EXAMPLE = '{"problem": "What is 6 times 7?", "answer": "42"}'

EXAMPLES = (
    ("What is the area of a rectangle with sides 7 and 12?", "The area is 7 * 12 = 84. The answer is \\boxed{84}."),
    ("Solve 3x + 5 = 4.", "Subtracting 5 gives 3x = -1, so x = -1/3. The answer is \\boxed{-\\frac{1}{3}}."),
    ("Expand (x - 2)(x + 5).", "x^2 + 5x - 2x - 10 = x^2 + 3x - 10. The answer is \\boxed{x^2 + 3x - 10}."),
    ("A fair die is thrown twice. What is the probability that both throws are sixes?",
     "The throws are independent: 1/6 * 1/6 = 1/36. The answer is \\boxed{\\frac{1}{36}}."),
)  # fmt: skip


def benchmark(
    name: str,
    path: str | Path | None = None,
    *,
    shots: int = 0,
    template: str = TEMPLATE,
    system: str = "",
    verifier: str | tuple[str, ...] = "math",
) -> Task:
    """A benchmark of `BENCHMARKS`: all its problems are held out, none is trained on.

    `path` is a local file of JSON lines or Parquet, or another dataset; by default it comes from Hugging Face. `shots`
    of the 4 worked examples stand before each problem, which takes the place of `{problem}` in `template`.
    """
    problems, answers = ("problem", "question", "prompt", "messages"), ("answer", "solution", VERL_ANSWER)
    form = _form(problems, answers, shots, template, system, verifier)
    rows = read_rows(path or BENCHMARKS[name], _EXAMPLE)
    return Task(name=name, train=(), heldout=numbered(map(form.read, rows)), verifier=verifier, wrap=form.wrap)


def math(
    path: str | Path,
    *,
    problem_field: str = "problem",
    answer_field: str = "answer",
    heldout: int | str | Path = 256,
    seed: int = 0,
    verifier: str | tuple[str, ...] = "math",
    shots: int = 0,
    template: str = TEMPLATE,
    system: str = "",
) -> Task:
    r"""Problems to train on, from JSON lines, a JSON array, Parquet or a dataset `hf:NAME:SPLIT`.

    `problem_field` and `answer_field` name the columns; a dot reaches into a column. A problem may be chat messages,
    whose last goes into the template; rows of verl's and OpenAI's are read as the task `jsonl` reads them. An answer
    that holds a `\boxed{}` is a worked solution. `heldout` is a count, drawn by `seed`, or another source.
    """
    problems = (problem_field, "prompt", "messages") if problem_field == "problem" else (problem_field,)
    answers = (answer_field, VERL_ANSWER) if answer_field == "answer" else (answer_field,)
    form = _form(problems, answers, shots, template, system, verifier)
    example = f'{{"{problem_field}": "What is 6 times 7?", "{answer_field}": "42"}}'
    return task_of_file("math", form, example, path, heldout, seed, verifier)


def _form(
    problem: tuple[str, ...],
    answer: tuple[str, ...],
    shots: int,
    template: str,
    system: str,
    verifier: str | tuple[str, ...],
) -> Form:
    if not 0 <= shots <= len(EXAMPLES):
        raise TaskError(f"shots is {shots}; it must be between 0 and {len(EXAMPLES)}")
    if "{problem}" not in template:
        raise TaskError(f"template is {template!r}; it must say where the problem goes: {{problem}}")
    worked = "".join(f"{template.replace('{problem}', asked)}\n{solution}\n\n" for asked, solution in EXAMPLES[:shots])
    return Form(
        prompt=problem,
        answer=answer,
        system=system,
        wrap=lambda problem: worked + template.replace("{problem}", problem),
        gold=_gold,
        needs_answer=needs_answer(verifier),
        keeps_columns=own_rewards(verifier),
    )


def _gold(row: Row, answer: str) -> str:
    if (gold := solution_gold(answer)) is None:
        raise row.error(f"the answer says nothing, or has no closed \\boxed{{}} with an answer in it: {shown(answer)}")
    return gold
