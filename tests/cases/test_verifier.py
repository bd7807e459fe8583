r"""Answers as people and models write them: every kind of spelling, right and wrong, judged as a person would.

The kinds K01 to K17 and P01 to P11 each have inputs of their own here; the judged pairs that name them lie beside the
repository. docs/answers.md says for each kind what counts as equal.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="needs the extra driftproof[math]")
from driftproof.verify.math import boxed, hashes, math, number

PAIRS = Path(__file__).parents[3] / "shared" / "data" / "cases" / "verifier_pairs.jsonl"
OWN = Path(__file__).parent / "answers.jsonl"
VERIFIERS = {"math": math, "math-boxed": boxed, "math-hashes": hashes, "math-number": number}

RIGHT = {
    "K01": [
        ("7", r"\boxed{7 \text{ litres}}"),
        (r"40 \text{ m}^2", r"\boxed{40}"),
        (r"40 \text{ m}^2", r"\boxed{40 \text{ square meters}}"),
        ("9.81", r"\boxed{9.81\ \mathrm{m\,s^{-2}}}"),
        (r"\frac{7}{4}", r"\boxed{\frac{7}{4} \text{ cups of flour}}"),
        (r"8\sqrt{3}", r"\boxed{8\sqrt{3}\text{ cm}}"),
        ("2000000", r"\boxed{2 \text{ million}}"),
        ("80", r"\boxed{80 \frac{\text{km}}{\text{h}}}"),
        (r"25\%", r"\boxed{25 \text{ percent}}"),
    ],
    "K03": [
        ("6", "<think>5? No: \\boxed{5} is too small.</think>\n\nIt is 6."),
        ("6", "<thinking>Perhaps \\boxed{5}.</thinking><answer>6</answer>"),
        ("6", "<reasoning>2 * 3</reasoning>\n<answer>\n$6$\n</answer>"),
        ("6", "◁think▷\\boxed{5}◁/think▷ The answer is 6."),
        ("x^2", "<answer>$x^2$</answer>"),
    ],
    "K04": [
        ("44", "#### Answer\n\n$44$"),
        ("44", "#### 1. Add up\n40 + 4 = 44\n\nThe answer is 44."),
        ("44", "40+4=44\n#### 44\n\nI hope that this helps!"),
    ],
    "K05": [
        ("21", "The answer is 20. Actually, that leaves out the first one, so it is 21."),
        ("9", "The answer is 8. Hold on, I miscounted. The answer is 9."),
        ("900", "The answer is 900 (that is 30 * 30)."),
    ],
    "K06": [(r"\frac{2}{200!}", r"\boxed{\frac{1}{100 \cdot 199!}}")],
    "K07": [
        ("7654321", r"\boxed{7\,654\,321}"),
        ("12345", r"\boxed{12 345}"),
        ("12345.5", r"\boxed{12~345.5}"),
        ("25000", "\\boxed{25\u2009000}"),
        ("25000", r"\boxed{25{\,}000}"),
    ],
    "K08": [("7k", r"\boxed{7k}"), ("3a+2s", r"\boxed{2s + 3a}")],
    "K09": [
        ("STOP", r"\boxed{\text{stop}}"),
        ("1302_5", r"\boxed{1302_{5}}"),
        ("1302_5", r"\boxed{1302 \text{ (base 5)}}"),
    ],
    "K10": [
        ("3-2\\sqrt{7}", r"\boxed{3−2√7}"),
        ("x^{10}", r"\boxed{x¹⁰}"),
        ("45", r"\boxed{45°}"),
        (r"\frac{3}{4}", r"\boxed{¾}"),
        (r"\frac{5}{2}", r"\boxed{2½}"),
        ("250", r"\boxed{２５０}"),
        (r"\frac{\sqrt{3}}{2}", "The answer is √3/2."),
        (r"x \le 4", r"\boxed{x ≤ 4}"),
    ],
    "K11": [
        ("31", r"\fbox{31}"),
        ("31", r"\boxed{\textcolor{blue}{31}}"),
        ("31", r"\boxed{{\color{red} 31}}"),
        ("31", r"\boxed{\text{The final answer is } 31}"),
        ("31", r"\boxed{$31$}"),
        ("31", r"\boxed{\approx 31}"),
        ("31", r"\boxed{\underline{\mathbf{31}}}"),
        ("31", r"\boxed{\text{31 days}}"),
        ("D", r"\boxed{\textbf{(D)}\ 31}"),
        ("31", r"Put it within \boxed{}. It is \boxed{31}. (In a \boxed{}, as asked.)"),
    ],
    "K12": [
        ("2.5+3i", r"\boxed{2.5 + 3.0i}"),
        (r"\frac{3i}{4}", r"\boxed{0.75i}"),
        (r"-i", r"\boxed{-1.0 i}"),
        (r"1+\sqrt{2}i", r"\boxed{1 + i\sqrt{2}}"),
    ],
    "K13": [
        (r"0 < t \le 5", r"\boxed{5 \ge t > 0}"),
        ("(0, 5]", r"\boxed{0 < t \leq 5}"),
        (r"x \le -2 \text{ or } x > 7", r"\boxed{(-\infty, -2] \cup (7, \infty)}"),
        (r"(-\infty, 4) \cup (4, \infty)", r"\boxed{x \neq 4}"),
        (r"(2, \infty)", r"\boxed{x > 2}"),
        (r"[-3, 3]", r"\boxed{\{x \mid -3 \le x \le 3\}}"),
    ],
    "K14": [
        (r"\frac{5}{11}", r"\boxed{0.\overline{45}}"),
        (r"\frac{1}{6}", r"\boxed{0.1\overline{6}}"),
        (r"\frac{2}{3}", r"\boxed{0.\dot{6}}"),
        (r"\frac{2}{3}", r"\boxed{0.666\ldots}"),
        (r"0.\overline{27}", r"\boxed{3/11}"),
    ],
    "K15": [
        ("-1, 4", r"x = \boxed{-1} \text{ or } x = \boxed{4}"),
        ("-1, 4", r"$\boxed{4}$ and $\boxed{-1}$"),
        ("7", r"$\boxed{7}$, $\boxed{7}$"),
    ],
    "K16": [
        ("D", "The correct answer is (D)."),
        (r"\text{Friday}", "The answer is **Friday**."),
        ("(2,-5)", "Hence the vertex is (2, -5)."),
        ("-1, 6", "So we get x = -1 or x = 6."),
        ("2x-1", "The answer is 2x - 1."),
        ("33", "因此答案是33。"),
        ("33", "`33`"),
        ("33", "Answer: [33]"),
        ("33", '"answer": 33'),
    ],
    "K17": [
        (r"\frac{3\pi}{4}", r"\boxed{3pi/4}"),
        (r"\frac{\sqrt{5}}{2}", r"\boxed{sqrt(5)/2}"),
        (r"(-\infty, 3)", r"\boxed{(-infinity, 3)}"),
        (r"\theta + 2", r"\boxed{theta + 2}"),
    ],
    "P01": [(r"5\sqrt{2}", "The diagonal is 5\\sqrt{2}."), (r"7+2i", "#### 7 + 2i"), ("4y", "The answer is 4y.")],
    "P02": [
        ("70", r"We get \boxed{30} and \boxed{40}. The final answer is 70."),
        ("70", "\\boxed{30}\n\n**Final Answer:** 70"),
    ],
    "P03": [
        (r"2e^{3}", r"\boxed{2\mathrm{e}^{3}}"),
        (r"5-i", r"\boxed{5 - \mathrm{i}}"),
        (r"\ln 2", r"\boxed{\mathrm{ln}\, 2}"),
        (r"\sin x", r"\boxed{\operatorname{sin} x}"),
    ],
    "P04": [
        (r"\frac{11}{4}", r"\boxed{2 3/4}"),
        (r"-\frac{7}{3}", r"\boxed{-2\frac{1}{3}}"),
        ("2.75", r"\boxed{2\tfrac34}"),
    ],
    "P05": [
        ("36", r"\boxed{36 students}"),
        ("7.25", r"\boxed{7.25 euros}"),
        ("9", r"\boxed{9 red balls}"),
        ("5", r"\boxed{5 m/s}"),
    ],
    "P06": [
        ("4700", r"\boxed{4.7 \times 10^{3}}"),
        ("0.0031", r"\boxed{3.1 \cdot 10^{-3}}"),
        ("52000", r"\boxed{5.2e4}"),
    ],
    "P07": [
        ("6", "\\begin{align*}\n2x &= 12 \\\\\nx &= 6\n\\end{align*}"),
        ("6", "\\[\\begin{aligned} x &= 3+3 \\\\ &= 6 \\end{aligned}\\]"),
    ],
    "P08": [
        ("a=4,b=-1", r"\boxed{b=-1, a=4}"),
        ("a=4,b=-1", r"\boxed{(a,b) = (4,-1)}"),
        ("a=4,b=-1", r"\boxed{a = 4 \quad b = -1}"),
        ("a=4,b=-1", r"\boxed{\begin{cases} a=4 \\ b=-1 \end{cases}}"),
    ],
    "P09": [("7:05", r"\boxed{7:05}"), ("7:05", r"\boxed{7:05 \text{ a.m.}}"), ("3:4", r"\boxed{6:8}")],
    "P10": [("12", r"\boxed{+12}"), ("12", "So the change is +12."), (r"\infty", r"\boxed{+\infty}")],
    "P11": [("64", "The answer is *64*."), ("64", "**The answer is __64__**"), ("64", "**Answer**: ***64***")],
}
"""Gold answers and responses that say them, by kind."""

WRONG = {
    "K01": [
        (r"12\text{ cm}", r"\boxed{12 \text{ m}}"),
        ("7", r"\boxed{7 \text{ or } 8 \text{ litres}}"),
        ("5", r"\boxed{5 \text{ less than } 8}"),
    ],
    "K02": [],
    "K03": [("5", "<think>5? No: \\boxed{5} is too small.</think>\n\nIt is 6."), ("5", "<think>It must be 5.")],
    "K04": [("1", "#### 1. Add up\n40 + 4 = 44\n\nThe answer is 44."), ("44", "#### 44 or 45")],
    "K05": [
        ("20", "The answer is 20. Actually, that leaves out the first one, so it is 21."),
        ("30", "The answer is 900 (that is 30 * 30)."),
    ],
    "K06": [
        (r"5^{-900}", r"\boxed{5^{-901}}"),
        (r"x + 10^{-30}", r"\boxed{x + 10^{-31}}"),
        (r"\frac{1}{60!}", r"\boxed{0}"),
        ("10^{-20}", r"\boxed{10^{-21}}"),
    ],
    "K07": [("42", r"\boxed{4 2}"), ("8", r"\boxed{4 2}"), ("0", r"\boxed{2\,000}"), ("1", r"\boxed{1\,000}")],
    "K08": [("7k", r"\boxed{7}"), ("3a+2s", r"\boxed{3a+2}"), ("9g", r"\boxed{9m}"), ("r^2 h", r"\boxed{r^2}")],
    "K09": [
        ("stop", r"\boxed{post}"),
        ("BADC", r"\boxed{ABCD}"),
        ("1302_5", r"\boxed{1302_6}"),
        ("1302_5", r"\boxed{1320_5}"),
    ],
    "K10": [("3", r"\boxed{−3}"), ("31", r"\boxed{3½}"), ("x^{10}", r"\boxed{x¹⁰⁰}")],
    "K11": [
        ("31", r"\boxed{31 \text{ (or 32)}}"),
        ("31", r"\boxed{\text{not } 31}"),
        ("D", r"\boxed{\textbf{(C)}\ 31}"),
        ("31", r"\boxed{?}"),
    ],
    "K12": [("2+3i", r"\boxed{2-3.0i}"), ("0.5i", r"\boxed{0.5}")],
    "K13": [
        ("(0, 5]", r"\boxed{0 < t < 5}"),
        ("x>2", r"\boxed{[2, \infty)}"),
        (r"x<1 \text{ or } x>3", r"\boxed{(1, 3)}"),
    ],
    "K14": [
        (r"\frac{1}{3}", r"\boxed{0.3}"),
        (r"\frac{5}{11}", r"\boxed{0.\overline{54}}"),
        (r"\frac{1}{3}", r"\boxed{0.33}"),
    ],
    "K15": [("4", r"x = \boxed{-1} \text{ or } x = \boxed{4}"), ("-1, 4", r"\boxed{-1} \text{ or } \boxed{5}")],
    "K16": [
        ("D", "The correct answer is (C)."),
        (r"\text{Friday}", "The answer is Sunday."),
        ("6", "So we get x = -1 or x = 6."),
    ],
    "K17": [(r"\pi", r"\boxed{p i}"), (r"3", r"\boxed{3pi}")],
    "P01": [
        ("5", "The diagonal is 5\\sqrt{2}."),
        ("7", "#### 7 + 2i"),
        ("4", "The answer is 4y."),
        ("9", "The area is 9\\pi"),
    ],
    "P02": [("40", r"We get \boxed{30} and \boxed{40}. The final answer is 70.")],
    "P03": [("2", r"\boxed{2\mathrm{e}^{3}}"), ("5", r"\boxed{5 - \mathrm{i}}")],
    "P04": [(r"\frac{3}{2}", r"\boxed{2 3/4}"), ("1.5", r"\boxed{2 3/4}")],
    "P05": [("36", r"\boxed{37 students}"), (r"60\text{ km}", r"\boxed{60 miles}")],
    "P06": [("4701", r"\boxed{4.7 \times 10^{3}}"), ("4700", r"\boxed{4.7 \times 10^{4}}")],
    "P07": [("12", "\\begin{align*}\n2x &= 12 \\\\\nx &= 6\n\\end{align*}")],
    "P08": [("a=4,b=-1", r"\boxed{a=-1, b=4}"), ("a=4,b=-1", r"\boxed{-1, 4}"), ("a=4,b=-1", r"\boxed{a=4}")],
    "P09": [("10:20", r"\boxed{1:02}"), ("10:20", r"\boxed{5:10}"), ("3:4", r"\boxed{4:3}")],
    "P10": [("12", r"\boxed{-12}")],
    "P11": [("64", "The answer is *46*.")],
}
"""Gold answers and responses that do not say them, by kind."""

NUMBERS = [
    ("25000", "25,000 people", 1.0),
    ("25", "25,000 people", 0.0),
    ("1234567.5", "in all $1,234,567.50", 1.0),
    ("25000", "25 000", 1.0),
    ("0", "25,000", 0.0),
    ("72", "７２", 1.0),
]
"""K02 and K07 for the verifier that takes the last number."""


@pytest.mark.parametrize(
    ("gold", "response"),
    [pytest.param(*pair, id=f"{kind}-{n}") for kind, pairs in RIGHT.items() for n, pair in enumerate(pairs)],
)
def test_right_answers_are_accepted(gold: str, response: str) -> None:
    assert math(response, gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "response"),
    [pytest.param(*pair, id=f"{kind}-{n}") for kind, pairs in WRONG.items() for n, pair in enumerate(pairs)],
)
def test_wrong_answers_are_refused(gold: str, response: str) -> None:
    assert math(response, gold) == 0.0


@pytest.mark.parametrize(("gold", "response", "expected"), NUMBERS)
def test_last_numbers_keep_their_separators(gold: str, response: str, expected: float) -> None:
    assert number(response, gold) == expected


def test_every_kind_has_inputs() -> None:
    kinds = {f"K{n:02}" for n in range(1, 18)} | {f"P{n:02}" for n in range(1, 12)}
    assert kinds == (RIGHT.keys() | WRONG.keys())


def pairs() -> list[object]:
    if not PAIRS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the judged pairs are not beside the repository"))]
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return [pytest.param(row, id=f"{row.get('kind', 'kept')}-{row['id']}") for row in rows]


@pytest.mark.parametrize("row", pairs())
def test_judged_pairs(row: dict[str, str]) -> None:
    assert VERIFIERS[row["verifier"]](row["response"], row["gold"]) == float(row["expected"])


def test_judged_answers_of_our_own() -> None:
    """Some 450 further pairs: right ones in unusual dress, and wrong ones that look right."""
    rows = [json.loads(line) for line in OWN.read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if math(row["response"], row["gold"]) != row["expected"]] == []


@pytest.mark.parametrize(
    "response",
    [
        "#### " + "1 " * 16_000,
        "\\boxed{" + "1 " * 16_000 + "}",
        "\\boxed{" + "(" * 900 + "1" + ")" * 900 + "}",
        "\\boxed{" + "\\frac{1}{" * 300 + "1" + "}" * 300 + "}",
        "\\boxed{9^{9^{9}}}",
        "\\boxed{(10^{10})!}",
        "\\boxed{" + "1," * 900 + "}",
        "\\boxed{" + "x=" * 900 + "}",
        "The answer is " * 4_000,
        "$" * 20_000,
        "answer: $1" * 4_000,
        "\\boxed{" * 8_000,
        "{" * 30_000,
        "1/" * 15_000,
        "<think>" * 5_000,
        "\\begin{align}" * 3_000,
        "\\boxed{\\text{" + "and " * 400 + "}}",
        "1 and " * 6_000,
        "½√" * 9_000,
        "\\boxed{" + "√" * 1_900 + "}",
        "\\sqrt(" * 5_000,
        "\\boxed{" + "\\pm 1" * 300 + "}",
        "\\boxed{\\sin \\Rightarrow }",
        "\\boxed{\\infty 9^{9^{9}} i}",
    ],
    ids=lambda response: repr(response[:24]),
)
def test_degenerate_responses_are_wrong_at_once(response: str) -> None:
    """H-a: a response of repetitions has the reward 0, without waiting for a time limit."""
    math("\\boxed{x+1}", "x+1")  # readers are warm
    started = time.process_time()
    assert math(response, "18") == 0.0
    assert time.process_time() - started < 1.0
