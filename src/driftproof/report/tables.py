"""The tables of runs and evaluations.

Guarantees: texts that models wrote are shown as they are, with control characters escaped and without being read as
markup; of the groups only those are read that are shown.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Column, Table
from rich.text import Text

from driftproof.evaluation.heldout import Evaluation
from driftproof.evaluation.score import Score
from driftproof.ledger.reader import Flag, LedgerReader, Order
from driftproof.ledger.records import Record
from driftproof.ledger.records import Summary as GroupSummary
from driftproof.report.summary import Summary
from driftproof.text import printable, shorten
from driftproof.types import Tokens

PAGE = 100
"""Groups that are browsed at a time."""

Pair = tuple[float | None, float | None]
"""A figure before and after a run."""


def before_after_table(summary: Summary) -> Table:
    """Accuracy on held-out prompts before and after a run; for recorded traces how likely their responses are."""
    table = plain_table("on held-out prompts", "before", "after", "change", "responses")
    prompts, samples = summary.evaluation_prompts or 0, summary.evaluation_samples or 0
    if prompts:
        accuracy = (summary.accuracy_before, summary.accuracy_after)
        errors = (summary.accuracy_before_error, summary.accuracy_after_error)
        _compare(table, "accuracy, sampled", accuracy, f"{prompts * samples:,}", errors)
        _compare(table, "accuracy, greedy", (summary.greedy_before, summary.greedy_after), f"{prompts:,}")
    if summary.nll_heldout_before is not None or summary.nll_heldout_after is not None:
        before, after = summary.nll_heldout_before or {}, summary.nll_heldout_after or {}
        for sign in ("positive", "negative"):
            name = f"{sign}_nll"
            _compare(table, f"NLL of the {sign} responses", (before.get(name), after.get(name)))
        _compare(table, "negative NLL / positive NLL", (_imbalance(before), _imbalance(after)))
    if not table.row_count:
        table.add_row("not evaluated", "", "", "", "")
    return table


def evaluation_table(title: str, found: Evaluation, temperature: float) -> Table:
    """Rewards on held-out prompts."""
    sampled = f"sampled, temperature {temperature}, mean of {found.samples}"
    table = Table(*(Column(name, justify="right") for name in ("greedy", sampled, "unverified")), title=title)
    table.add_row(f"{found.greedy:.3f}", f"{found.sampled:.3f} ± {found.sampled_error:.3f}", str(found.unverified))
    return table


def benchmark_table(title: str, scores: Iterable[Score]) -> Table:
    """Scores on benchmarks, each with the widest k it was scored for."""
    table = Table("benchmark", "problems", "mean@k", "pass@k", "unverified", "failed", title=title)
    for score in scores:
        k, passed = max(score.passed.items())
        mean, best = (f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in (score.mean, passed))
        row = (score.name, str(score.problems), f"@{score.samples} {mean}", f"@{k} {best}")
        table.add_row(*row, str(score.unverified), str(score.failed))
    return table


def events_table(events: Mapping[str, tuple[int, str]]) -> Table:
    """The events of a run: how many of each kind, with the last message."""
    table = plain_table("event", "count", "last message")
    table.columns[2].justify = "left"
    for kind, (count, message) in events.items():
        table.add_row(Text(printable(kind)), f"{count:,}", Text(shorten(printable(message), 200)))
    if not events:
        table.add_row("none", "", "")
    return table


def groups_table(
    ledger: LedgerReader,
    decode: Callable[[list[int]], str],
    *,
    by: Order | Literal["prompt"] = "best",
    limit: int = 10,
    characters: int = 160,
) -> Table:
    """Up to `limit` groups with their prompt and their best and worst response, cut to `characters`.

    Groups without a reward are neither good nor bad: they come last. Pruned groups are left out.
    """
    numbered = ("dispatch", "prompt", "trained\nin step", "age", "mean\nreward")
    table = plain_table(*numbered, "prompt, best and worst response")
    table.columns[-1].justify = "left"
    table.leading = 1
    for record in islice(_records(ledger, by), limit):
        numbers = ["-" if number is None else str(number) for number in (record.trained_step, record.age)]
        mean = "-" if record.mean_reward is None else f"{record.mean_reward:.3f}"
        texts = _texts(record, decode, characters)
        table.add_row(str(record.dispatch), str(record.group.prompt_index), *numbers, mean, texts)
    if not table.row_count:
        table.add_row(*[""] * len(numbered), "no groups")
    return table


def _records(ledger: LedgerReader, by: Order | Literal["prompt"]) -> Iterator[Record]:
    if by == "prompt":
        chosen = iter(sorted(_pages(ledger, "oldest"), key=lambda summary: summary.prompt_index))
    else:
        rest = _pages(ledger, "oldest", "unrewarded") if by in ("best", "worst") else ()
        chosen = chain(_pages(ledger, by), rest)
    return (record for summary in chosen if (record := ledger.record(summary.dispatch)) is not None)


def _pages(ledger: LedgerReader, by: Order, flag: Flag | None = None) -> Iterator[GroupSummary]:
    last = None
    while page := ledger.browse(by, flag=flag, after=last, limit=PAGE):
        yield from (summary for summary in page if flag is None or summary.mean_reward is None)
        last = page[-1].dispatch


def _texts(record: Record, decode: Callable[[list[int]], str], characters: int) -> Text:
    group, responses = record.group, record.group.split()

    def shown(tokens: Tokens) -> str:
        return shorten(printable(decode(tokens.tolist())), characters)

    parts = [(shown(group.prompt_tokens), "bold")]
    # A response without a reward ranks below all others.
    ranked = np.argsort(np.where(np.isfinite(group.rewards), -group.rewards, np.inf), kind="stable")
    for position in dict.fromkeys((ranked[0], ranked[-1])):
        reward = group.rewards[position]
        mark = f"{reward:g}" if np.isfinite(reward) else "no reward"
        parts.append((f"\n{mark}  {shown(responses[position])}", "green" if reward > 0 else "red"))
    reasons = [problem for problem in group.problems if problem]
    if reasons:
        why = shorten(printable(", ".join(sorted(set(reasons)))), characters)
        parts.append((f"\n{len(reasons)} of {group.size} responses have no reward: {why}", "yellow"))
    return Text.assemble(*parts, overflow="fold")


def _compare(table: Table, name: str, values: Pair, responses: str = "", errors: Pair = (None, None)) -> None:
    before, after = values
    change = "" if before is None or after is None else f"{after - before:+.3f}"
    cells = [
        "-" if value is None else f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")
        for value, error in zip(values, errors, strict=True)
    ]
    table.add_row(name, *cells, change, responses)


def _imbalance(nll: Mapping[str, float]) -> float | None:
    positive, negative = nll.get("positive_nll"), nll.get("negative_nll")
    return negative / positive if positive and negative is not None else None


def plain_table(first: str, *others: str, justify: JustifyMethod = "right") -> Table:
    """An empty table without vertical lines; `justify` is for all columns but the first."""
    columns = [Column(first), *(Column(name, justify=justify) for name in others)]
    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
