"""Rewards that were tried before a run, as lines of text: a prompt as the model reads it, answers and their rewards."""

from io import StringIO

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from driftproof.text import printable, shorten
from driftproof.types import Verdict
from driftproof.verify.trial import Trial

MOST_CHARACTERS = 600
"""Characters of the prompt that is shown as the model reads it."""
CELL = 18
"""Characters of a text in the table."""


def trial_lines(trial: Trial, prompt: str, tokens: int) -> str:
    """The trial of a verifier; `prompt` is the text of the first prompt's tokens, of which there are so many."""
    table = Table(
        Column("prompt", no_wrap=True),
        Column("right answer", no_wrap=True),
        Column("reward", justify="right"),
        Column("wrong answer", no_wrap=True),
        Column("reward", justify="right"),
        box=None,
        padding=(0, 2, 0, 0),
        show_edge=False,
    )
    for tried in trial.tried:
        texts = (tried.prompt.text, tried.right.response, tried.wrong.response)
        asked, right, wrong = (Text(shorten(printable(text.strip()), CELL)) for text in texts)
        table.add_row(asked, right, _reward(tried.reward), wrong, _reward(tried.wrong_reward))
    out = StringIO()
    # As wide as it has to be: a terminal may be asked to wrap a line, not to leave something out.
    Console(file=out, width=200, color_system=None, highlight=False).print(table)
    heading = f"rewards of {trial.verifier}, tried on {len(trial.tried)} prompts; the first as the model reads it"
    first = shorten(printable(prompt), MOST_CHARACTERS)
    rows = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([f"{heading} ({tokens:,} tokens):", f"  {first}", *(f"  {row}" for row in rows)])


def _reward(verdict: Verdict) -> Text:
    if verdict.problem:
        return Text("none" if verdict.reward is None else f"broke it, {verdict.reward:g}")
    parts = ", ".join(f"{name} {'none' if part is None else f'{part:g}'}" for name, part in verdict.parts)
    return Text(f"{verdict.reward:g} ({parts})" if parts else f"{verdict.reward:g}")
