r"""One notation for the many ways to write the same LaTeX: what only changes how an answer looks is taken away.

Wrappings (`\boxed`, `\mathbf`, `\color`, dollars, markdown), spacing, sizes of brackets and short forms of fractions
go; separators between groups of three digits go; all upright type becomes `\text{}`. Pure functions of a short text.
"""

import re
from functools import lru_cache

from driftproof.verify.answers.spelling import as_latex, closing
from driftproof.verify.answers.tables import FUNCTIONS, UNITS_OR_FUNCTIONS

_MARKDOWN = re.compile(r"\*{2,3}(?=[^\s*])([^*]*[^\s*])\*{2,3}|(?<![\w\\}])__([^_]+)__|`+([^`]*)`+")
_NEXT_GROUP = re.compile(r"(?<!\\)\$\s*\n\s*\$(?!\$)")
_EMPHASIS = re.compile(r"^\s*(?:\*([^*]+)\*|_([^_]+)_|\"([^\"]*)\"|'([^']*)')\s*$")
_DELIMITERS = re.compile(r"(?<!\\)\$\$?|(?<!\\)\\[()\[\]]")
_OLD_UPRIGHT = re.compile(r"\{\s*\\rm(?![a-zA-Z])\s*([^{}]*)\}")
_SEPARATORS = (
    re.compile(r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\,|\\;|\\:|\\!|\\ |~|\{\s*\}|\{\\,\}|\\thinspace)\s*(?=\d{3}(?!\d))"),
    re.compile(r"(?<=\d)\s*(?:\\!|\{\})\s*(?=,)|(?<=\d,)\s*(?:\\!|\{\})\s*(?=\d)"),
)
_GONE = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?|\\(?:displaystyle|textstyle|scriptstyle|limits|"
    r"nolimits|ensuremath|strut|mathstrut|null|relax|protect|noindent|centering|large|Large|huge|normalsize|bf|rm|it|"
    r"boldmath|hfill|par|bfseries|therefore|quad(?=\s*$)|implies(?=\s*$)|checkmark|blacksquare|square(?=\s*$)|qed)(?![a-zA-Z])"
)
_INVISIBLE = re.compile(
    r"\\(?:[hv]?phantom|[bx]?cancel|sout|label|tag\*?|hspace\*?|vspace\*?|hskip|kern|footnote)\s*(?=\{)"
)
_NEXT_NAME = re.compile(r"(?:[,;]\s*)?\\q?quad\s*(?=[a-zA-Z](?:_\{?\w\}?)?\s*=)")
_SPACES = re.compile(
    r"(?<!\\)\\[,;:!> ]|~|\\(?:q?quad|(?:enspace|(?:thin|med|thick|negthin|nobreak)?space)(?![a-zA-Z]))"
)
_WRAPPED = re.compile(
    r"\\(?:boxed|fbox|framebox|bbox(?:\[[^\]]*\])?|mathbf|bm|boldsymbol|pmb|mathit|mathsf|mathtt|mathnormal|underline|mathds|"
    r"bold|mathord|mathop|textnormal|displaylines|(?:text)?color\s*\{[^{}]*\}|colorbox\s*\{[^{}]*\}|overbrace|underbrace|"
    r"mathchoice|textstyle|hl|ul|emph\s*(?=\{\d)|SI(?=\{[^{}]*\}\{)|num)\s*(?=\{)"
)
_COLOR_SWITCH = re.compile(r"\\color\s*\{[^{}]*\}")
_UPRIGHT = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal|up|sc|sl|md)?|math(?:rm|up)|mbox|hbox|operatorname\*?|emph|unit|si|mathop)\s*(?=\{)"
)
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac(?![a-zA-Z])\s*")
_BARE_ROOT = re.compile(r"\\sqrt(\[[^\]]*\])?\s*(\d|[a-zA-Z]|\\[a-zA-Z]+)")
_LEADING = re.compile(
    r"^\s*(?:[=:]|\\(?:approx|Rightarrow|rightarrow|implies|to|sim|therefore|because)(?![a-zA-Z])|→|⇒|≡|\\equiv\b)\s*(?!=)"
)
_TRAILING = re.compile(r"(?:[\s,;:*]|(?<![.\d])\.|(?<!\.)\.(?!\d)|\\|\\q?quad|✅|✓|☐|□)+$")
_ALIAS = (
    (re.compile(r"\{\s*([-+])\s*\}"), r"\1"),
    (re.compile(r"\\math(?:rm|bf|it|sf)\s+([a-zA-Z])(?![a-zA-Z])"), r"\1"),
    (re.compile(r"<=|=<"), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"\\(?:odot|oplus|bigstar|star)(?![a-zA-Z])"), "o"),
    (re.compile(r"^\s*\\(?:vec|overrightarrow)\s*(?:\{\s*([a-zA-Z]+)\s*\}|([a-zA-Z]))\s*$"), r"\1\2"),
    (re.compile(r"\\bmod(?![a-zA-Z])"), r"\\mod "),
    (re.compile(r"\\overline\s*\{\s*([A-Z]{2})\s*\}"), r"\1"),
    (re.compile(r"\\(?:leq?slant|leq)(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"\\(?:geq?slant|geq)(?![a-zA-Z])"), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\(?:varnothing|emptyset)(?![a-zA-Z])|\\O(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\\(?:imath|i)(?![a-zA-Z])"), "i"),
    (re.compile(r"\\jmath(?![a-zA-Z])"), "j"),
    (re.compile(r"\\wedge(?![a-zA-Z])"), r"\\land "),
    (re.compile(r"\\vee(?![a-zA-Z])"), r"\\lor "),
    (re.compile(r"\\(?:lbrace|lcurly)(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace|rcurly)(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:lbrack)(?![a-zA-Z])"), "["),
    (re.compile(r"\\(?:rbrack)(?![a-zA-Z])"), "]"),
    (re.compile(r"\\(?:degree|degrees)(?![a-zA-Z])"), r"^{\\circ}"),
    (re.compile(r"\^\s*\\circ(?![a-zA-Z])|\^\s*\{\s*\\circ\s*\}"), r"^{\\circ}"),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\(?:ne|not\s*=)(?![a-zA-Z])"), r"\\ne "),
    (re.compile(r"\\(?:colon|ratio)(?![a-zA-Z])"), ":"),
    (re.compile(r"\\begin\s*\{(?:array\}\s*\{[clr|\s]*|[bpB]?matrix|smallmatrix)\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\s*\{(?:array|[bpB]?matrix|smallmatrix)\}"), r"\\end{pmatrix}"),
    (re.compile(r"\\infin(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"\\(?:backslash|smallsetminus)(?![a-zA-Z])"), r"\\setminus "),
    (re.compile(r"\\varpi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"\\(?:exponentialE|e)(?![a-zA-Z])"), "e"),
    (re.compile(r"\\dots[cbmio]?(?![a-zA-Z])|\\ldots(?![a-zA-Z])"), r"\\ldots "),
)
_ONE_TOKEN = re.compile(r"\\[a-zA-Z]+|.")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne)(?![a-zA-Z])")
_LOGIC = re.compile(r"\\(?:land|wedge)(?![a-zA-Z])"), re.compile(r"\\(?:lor|vee)(?![a-zA-Z])")
_BOLD_LETTER = re.compile(r"\\(?:mathbf|boldsymbol|bm)\s*\{\s*([a-zA-Z])\s*\}")
_BOLD_DIGITS = re.compile(r"\\(?:mathbf|boldsymbol|bm)\s*\{\s*\d(?: \d)+(?=[ }\\])")
_MOST_ROUNDS = 8


@lru_cache(maxsize=1024)
def clean(text: str) -> str:
    """The answer in one notation, without what only changes how it looks."""
    text = _BOLD_DIGITS.sub(lambda found: found[0].replace(" ", ""), _markup(as_latex(text.strip())))
    for separator in _SEPARATORS:
        text = separator.sub("", text)
    for pattern, replacement in _ALIAS:
        text = pattern.sub(replacement, text)
    if _RELATION.search(text):
        text = _LOGIC[1].sub(r"\\text{ or }", _LOGIC[0].sub(r"\\text{ and }", text))
    if "\\times" in text or "\\cdot" in text:
        text = _BOLD_LETTER.sub(r"\\vec{\1}", text)
    text = _unwrapped(text, _INVISIBLE, "")
    text = _OLD_UPRIGHT.sub(r"\\text{\1}", text)
    text = _GONE.sub(" ", _COLOR_SWITCH.sub(" ", _unwrapped(text, _WRAPPED, "{}")))
    text = _upright(_SPACES.sub(" ", _NEXT_NAME.sub(", ", text)))
    text = _fractions(text)
    text = _BARE_ROOT.sub(r"\\sqrt\1{\2}", text)
    return trimmed(re.sub(r"\s+", " ", text))


def _markup(text: str) -> str:
    """The text without the signs of markdown and the delimiters of mathematics around it."""
    text = _NEXT_GROUP.sub("$, $", text)
    text = _MARKDOWN.sub(lambda found: found[1] or found[2] or found[3] or "", text)
    if found := _EMPHASIS.match(text):
        text = next(part for part in found.groups() if part is not None)
    return _DELIMITERS.sub(" ", text)


def trimmed(text: str) -> str:
    """The text without signs in front of an answer (`=`, an arrow), a full stop behind it, and braces around it."""
    for _ in range(_MOST_ROUNDS):
        before = text
        text = _TRAILING.sub("", _LEADING.sub("", text)).strip()
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1].strip()
        if text == before:
            break
    return text


def _unwrapped(text: str, command: re.Pattern[str], keep: str) -> str:
    """The text with the argument of a command in its place, or with nothing in its place."""
    for _ in range(200):
        if not (found := command.search(text)):
            break
        end = closing(text, found.end())
        if end is None:
            text = text[: found.start()] + text[found.end() :]
            continue
        inside = text[found.end() + 1 : end] if keep else ""
        text = f"{text[: found.start()]} {inside} {text[end + 1 :]}"
    return text


def _upright(text: str) -> str:
    r"""Upright type as `\text{...}`; functions (`\ln`), single letters (`e`) and numbers in it are mathematics."""
    pieces, position = [], 0
    while found := _UPRIGHT.search(text, position):
        pieces.append(text[position : found.start()])
        end = closing(text, found.end())
        if end is None:
            position = found.end()
            continue
        pieces.append(_upright_piece(found[0], text[found.end() + 1 : end]))
        position = end + 1
    return "".join(pieces) + text[position:]


def _upright_piece(command: str, inside: str) -> str:
    word = inside.strip()
    mathematical = not command.startswith(("\\text", "\\mbox", "\\hbox", "\\emph"))
    if word in FUNCTIONS and (mathematical or word not in UNITS_OR_FUNCTIONS):
        return rf"\{word} "
    if word in ("e", "i", "d", "\\pi", "T", "P") and (mathematical or word in ("e", "i")) and inside == word:
        return word
    if not re.search("[a-zA-Z]", word) or re.fullmatch(r"[-+\d.,/^*\\{}]*\\[dtc]?frac.*", word):
        return f" {word} "
    return rf"\text{{{re.sub(r'[{}]', '', inside)}}}"


def _fractions(text: str) -> str:
    r"""Every fraction as `\frac{a}{b}`, from `\dfrac`, `\frac83`, `\frac{8}3` and `{8 \over 3}`."""
    pieces, position = [], 0
    while found := _SHORT_FRACTION.search(text, position):
        pieces.append(text[position : found.start()] + "\\frac")
        position = found.end()
        for _ in range(2):
            argument, position = _argument(text, position)
            pieces.append(f"{{{argument}}}")
    return re.sub(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}", "".join(pieces) + text[position:])


def _argument(text: str, position: int) -> tuple[str, int]:
    """One argument of a command, and the position behind it."""
    while position < len(text) and text[position] == " ":
        position += 1
    if text[position : position + 1] == "{":
        end = closing(text, position)
        end = len(text) if end is None else end
        return _fractions(text[position + 1 : end]), end + 1
    if found := _ONE_TOKEN.match(text, position):
        return found[0], found.end()
    return "", position
