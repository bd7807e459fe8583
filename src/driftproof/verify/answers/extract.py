r"""The place where a response says its final answer.

Behind its thinking, and inside `<answer>` tags where it has them: in the last `\boxed{}`, behind the last `####`, in
the last statement ("the answer is ..."), else the last expression. Of a box, `####` and a statement the last counts.
Pure functions whose time grows with the length of the response alone; what they return is short.
"""

import re

from driftproof.tasks.answers import Box, boxes, says_nothing, tail
from driftproof.verify.answers.prose import GROUP, Expression, expressions, last_expression
from driftproof.verify.answers.spelling import as_latex

_LONGEST_ANSWER = 2_000
_LONGEST_CLAUSE = 400
_MOST_STATEMENTS = 10
"""Statements and `####`, from the last one on, that are looked at."""
_STRUCK_OUT = re.compile(r"~~[^~\n]{1,200}~~|<<[^<>\n]{0,200}>>")
_TIMES = re.compile(r"(?<=\d) ?[xX] ?(?=\$?\d)")
_WAY_TO_ANSWER = 25
"""Characters of words between "the answer is" and an expression that is still meant by it."""
_NEAR = 60
"""Characters between boxes that are one list."""

_THOUGHT = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|scratchpad|analysis|reflection|cot)"
_END_OF_THINKING = re.compile(
    rf"</\s*{_THOUGHT}\s*>|<\|end_of_th(?:ought|inking)\|>|◁/think▷|\[/THINK\]"
    r"|<\|/?channel\|?>\s*final\s*<\|message\|>",
    re.I,
)
_THINKING = re.compile(
    rf"^[ \t]*(?:<\s*{_THOUGHT}\s*>|<\|begin_of_th(?:ought|inking)\|>|◁think▷|\[THINK\]"
    r"|<\|channel\|>\s*analysis\s*<\|message\|>)",
    re.I | re.M,
)
_TAG = r"(?:final[_ ]?)?(?:answer|solution)"
_TAGGED = re.compile(rf"<\s*{_TAG}\s*>|<\|begin_of_(?:solution|answer)\|>|\[ANSWER\]", re.I)
_END_OF_TAG = re.compile(rf"</\s*{_TAG}\s*>|<\|end_of_(?:solution|answer)\|>|\[/ANSWER\]", re.I)

_BETWEEN = r"(?:[\s$.,;&]|\\[\[\]()\\ ]|\\q?quad|\\text\s*\{\s*,?\s*(?:and|or)?\s*,?\s*\}|\b(?:and|or)\b)*"
_JOIN = re.compile(
    rf"(?=.*(?:[,;&]|\b(?:and|or)\b)){_BETWEEN}(?:[a-zA-Z](?:_\{{?\w\}}?)?\s*=)?[\s$]*|[\s.,;]*\([b-h]\)\s*", re.S
)
_DENIED = re.compile(r"(?:\b(?:not|cannot|never|rather\s+than|instead\s+of)|n't)(?:\s+be)?[\s$:]*$", re.I)
_FILLERS = r"(?:\s+(?:equal\s+to|therefore|thus|then|simply|just|indeed|given\s+by|as\s+follows|clearly|exactly))*"
_SAYS = (
    rf"(?:\s*(?:(?:is|are|was|be|equals?|becomes|(?:must|should|would|will)\s+be|reads?)\b{_FILLERS}\s*[:=]?)"
    r"|\s*(?::|=|→|=>|->)+)"
)
_OF_WHAT = r"(?:\s*\([^()\n]{0,40}\))?(?:\s+(?:to|for|of|in|here|we|that|as|choice|option)\b[^.:=\n]{0,80}?)?"
_STATED = re.compile(
    rf"\b(?:answer|ans)\b{_OF_WHAT}[\s*_\"'`]*?{_SAYS}"
    rf"|\bfinal\s+(?:result|value|solution)\b[\s*_]*{_SAYS}"
    rf"|\b(?:correct|right|best)\s+(?:option|choice)\b[\s*_]*{_SAYS}"
    r"|^[# \t>*_-]*(?:the\s+)?(?:final\s+)?answer[ \t*_:]*\n"
    r"|(?:答案|答え|解答|答|정답|답)\s*(?:应该|應該)?(?:是|为|為|は|은|는)?\s*:?"
    r"|\b(?:réponse|respuesta|risposta|resposta|antwort|ответ|odpowiedź|cevap|antwoord|svar)\b[^.:=\n]{0,40}?"
    r"(?:\b(?:est|es|è|é|ist|lautet|to|är|is)\b|[:=—-])\s*:?",
    re.I | re.M,
)
_ANSWERED = re.compile(r"\\boxed\s*\{|####|\banswer\b[^.\n]{0,40}?(?:\bis\b|:)|^A:", re.I | re.M)
_SUPPOSED = re.compile(r"\b(?:suppose|assume|if|whether|doubt|unless|not\s+(?:true|the\s+case))\b(?!.*,)", re.I | re.S)
_ROUNDED = re.compile(r"\s*(?:about|approximately|approx\.?|roughly|nearly|almost|around|close\s+to)\b", re.I)
_CORRECTED = re.compile(
    r"\b(?:wait|oops|mistake|incorrect|wrong|sorry|scratch\s+that|correction|correcting|actually|hold\s+on|i\s+meant"
    r"|let\s+me\s+(?:re|fix|correct))\b",
    re.I,
)
_END_OF_SENTENCE = re.compile(r"\.(?<!\b[ie]\.[eg]\.)(?<!\b[ap]\.m\.)(?=\s|\**\s|$)|[!?](?=\s|\**\s|$)|\n")
_LEADING = re.compile(r"^(?:[\s*_`\"':>#-]*(?:\*\*|[\s*_`\"':>#])|-\s+)+")
_HEADING = re.compile(r"[\s*_#]*(?:[^\W\d_]{2,}|\d+[.)]\s+[^\W\d_]{2,})")
_SCALE = re.compile(
    r"\s*(?:%|per\s?cent\b|percentage points\b|(?:dozen|hundred|thousand|million|billion|trillion)\b)", re.I
)
_CHOICE = re.compile(r"\W*\(?([A-J])\)?(?:[.):,;]|\s+(?:because|since|as|is|which|with|from|for|and not|-)\b|\s*$)")
_CHOSEN = re.compile(
    r"(?:\b(?i:pick|choose|select|option|choice|so|thus|hence|therefore|only|but|is)\b[\s:*(]*|(?<![a-zA-Z])\()([A-J])"
    r"(?:\)?\W*$|[).,;:*]*\s+(?:since|because|as|is\s+(?:correct|right|the)|fits|works|matches)\b)"
)
_SAID_LAST = re.compile(
    r"(?:\b(no\s+(?:\w+\s+)?solutions?|does\s+not\s+exist)|\b(?:is|are|was)\s+([a-zA-Z][a-zA-Z -]{1,40}))\W*$", re.I
)
"""Words at the very end: `there is no solution`, `the number is even`."""
_REMARK = re.compile(r"\n\s*\([^()\n]*[a-zA-Z]{2}[^()\n]*\)\s*$")
_PART = re.compile(r"^\([a-h]\)\s+(?=[-$\\\d])")
_YES_OR_NO = re.compile(r"\W*(yes|no|true|false)\b(?=[,.;:!]|\s*$|\s+because)", re.I)
_NEXT_QUESTION = re.compile(r"^[ \t#*]*(?:Question|Problem|Q|Human|User|Instruction)[ \t]*\d*[ \t]*[:.]", re.M)
"""A line with which a model goes on to another question."""


def answers(text: str, parts: int = 1) -> list[str]:
    """The final answer of a response, in the readings that its sentence allows; empty without one.

    `parts` is how many answers the gold one has: as many boxes near each other are read as one list.
    """
    if (tagged := _inside_tags(_behind_thinking(text, cut=False))) is not None:
        return _in_part(tagged, parts) if _is_marked(tagged) else _clause(_plain(tagged.strip()))
    return _in_part(_behind_thinking(text), parts)


def boxed(text: str, parts: int = 1) -> list[str]:
    """The last boxes, behind the thinking; empty without a box that holds anything."""
    part = _behind_thinking(text)
    return _in_boxes(part, boxes(part), parts)


def hashed(text: str) -> list[str]:
    """The line behind the last `####`."""
    return _hashed(_behind_thinking(text), headings=False)[1]


def _plain(text: str) -> str:
    """The text with LaTeX for what Unicode has signs for, without what is struck out and GSM8K's `<<9*2=18>>`."""
    return as_latex(_TIMES.sub(r" \\times ", _STRUCK_OUT.sub("", text)))


def _in_part(part: str, parts: int) -> list[str]:
    """The readings of the last of box, `####` and statement; without any of them of the last expression."""
    if (question := _NEXT_QUESTION.search(part, 1)) and _ANSWERED.search(part, 0, question.start()):
        part = part[: question.start()]
    found = boxes(part)
    box_end = found[-1].end if found else 0
    line_end, line = _hashed(part)
    start = max(len(part) - _LONGEST_ANSWER, box_end, line_end if line else 0)
    stated = _stated(_plain(part[start:]), strict=bool(found or line))
    if stated:
        return stated
    if line and line_end > box_end:
        return line
    return _in_boxes(part, found, parts) if found else _last_expression(_plain(tail(part)))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found


def _behind_thinking(text: str, cut: bool = True) -> str:
    """The response without its thinking: what is behind it, else in front of it; `cut`: nothing while it goes on."""
    if end := _last(_END_OF_THINKING, text):
        behind = text[end.end() :]
        if not behind.strip() and (begin := _last(_THINKING, text[: end.start()])):
            return _behind_thinking(text[: begin.start()], cut)
        text = behind
    if cut and (begin := _THINKING.search(text)):
        text = text[: begin.start()]
    return text


def _inside_tags(part: str) -> str | None:
    end = _last(_END_OF_TAG, part)
    begin = _last(_TAGGED, part[: end.start()] if end else part)
    if begin:
        return part[begin.end() : end.start() if end else None]
    return part[: end.start()] if end else None


def _is_marked(text: str) -> bool:
    return len(text) > _LONGEST_CLAUSE or "boxed" in text or "\\fbox" in text or "####" in text


def _in_boxes(part: str, found: list[Box], parts: int) -> list[str]:
    """The last box with those that a comma, `and` or `or` joins to it; as many boxes as `parts` near each other."""
    found = [box for box in found if not (says_nothing(box.content) or _is_denied(part, box))]
    if not found:
        return []
    joined, near = [found[-1].content], [found[-1].content]
    for box, later in zip(found[-2::-1], found[:0:-1], strict=True):
        between = part[box.end : later.start]
        if len(between) > _NEAR or ("\n\n" in between and between.strip()):
            break
        near.insert(0, box.content)
        if len(joined) == len(near) - 1 and _JOIN.fullmatch(between):
            joined.insert(0, box.content)
    joined, near = list(dict.fromkeys(joined)), list(dict.fromkeys(near))
    readings = [", ".join(joined)]
    if parts > 1 and len(joined) == 1 and len(near) == parts:
        readings.append(", ".join(near))
    return [reading for reading in readings if len(reading) <= _LONGEST_ANSWER]


def _is_denied(part: str, box: Box) -> bool:
    return bool(_DENIED.search(part[max(0, box.start - 30) : box.start]))


def _hashed(part: str, headings: bool = True) -> tuple[int, list[str]]:
    """The end of the line behind the last `####`, and what it says; a heading with text below it is passed over."""
    end = len(part)
    for _ in range(_MOST_STATEMENTS):
        marker = part.rfind("####", 0, end)
        if marker < 0:
            break
        rest = part[marker + 4 : marker + 4 + _LONGEST_ANSWER]
        start = marker + 4 + len(rest) - len(rest.lstrip())
        line, _, below = rest.strip().partition("\n")
        heading = bool(_HEADING.match(line))
        end = marker
        if not line or len(line) > _LONGEST_CLAUSE:
            return start, []
        if heading and (stated := _stated(_plain(line if below else rest))):
            return start + len(line), stated
        if heading and below.strip() and headings:
            continue
        if heading and below.strip() and (stated := _stated(_plain(rest))):
            return start + len(line), stated
        return start + len(line), _clause(_plain(line))
    return 0, []


def _stated(text: str, strict: bool = False) -> list[str]:
    """The readings of the last statement of an answer; in the strict sense it must be one without doubt."""
    for statement in list(_STATED.finditer(text))[: -_MOST_STATEMENTS - 1 : -1]:
        begin = max(text.rfind(mark, 0, statement.start()) for mark in (". ", "\n", "? ", "! "))
        if _SUPPOSED.search(text[max(0, begin) : statement.start()]):
            continue
        clause, end = _sentence(text, statement.end())
        readings = _clause(clause) if text[end : end + 1] != "?" else []
        if strict and (_ROUNDED.match(clause) or len(readings) < 2):
            continue
        if not readings:
            continue
        if (correction := _CORRECTED.search(text, end)) and (last := last_expression(text[correction.end() :])):
            return [_scaled(text[correction.end() :], last)]
        return readings
    return []


def _sentence(text: str, start: int) -> tuple[str, int]:
    """The sentence from `start` on, over the empty lines and signs of markdown in front of it, and where it ends."""
    lead = _LEADING.match(text[start:])
    start += lead.end() if lead else 0
    groups = [group.span() for group in GROUP.finditer(text, start, start + _LONGEST_CLAUSE)]
    position = start
    while end := _END_OF_SENTENCE.search(text, position):
        inside = next((stop for begin, stop in groups if begin <= end.start() < stop), None)
        if inside is None:
            return text[start : end.start()], end.start()
        position = inside
    return text[start:], len(text)


def _clause(clause: str) -> list[str]:
    """The readings of what follows "the answer is": all of it, and the choice or expression that it begins with."""
    clause = _PART.sub("", clause.strip()[:_LONGEST_ANSWER])
    readings = [clause] if 0 < len(clause) <= _LONGEST_CLAUSE else []
    if choice := _CHOICE.match(clause) or _YES_OR_NO.match(clause):
        readings.append(choice[1])
    elif found := expressions(clause):
        first = found[0] if _is_near(clause[: found[0].start]) else found[-1]
        readings.append(_scaled(clause, first).rstrip("!"))
    return readings


def _is_near(before: str) -> bool:
    return len(before) <= _WAY_TO_ANSWER and not re.search(r"\b(?:sum|product|difference|ratio|of)\b", before)


def _scaled(text: str, one: Expression) -> str:
    """The expression, with the scale that is said behind it: `2 million`, `50 percent`."""
    scale = _SCALE.match(text, one.end)
    return f"{one.text} {scale.group().strip()}" if scale else one.text


def _last_expression(text: str) -> list[str]:
    """All of a short text, the choice that it ends with, or its last expression."""
    whole = text.strip()
    text = _REMARK.sub("", text)
    readings = [whole] if 0 < len(whole) <= _LONGEST_CLAUSE and "\n" not in whole else []
    if said := _SAID_LAST.search(text):
        readings.append(said[1] or said[2])
    if choice := _last(_CHOSEN, text) or _YES_OR_NO.match(text):
        readings.append(choice[1])
    if last := last_expression(text):
        readings.append(_scaled(text, last))
    return readings
