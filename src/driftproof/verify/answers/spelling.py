r"""Unicode and plain words of mathematics, spelled as LaTeX: `2√5 × π` becomes `2\sqrt{5} \times \pi`.

Pure functions of a short text.
"""

import re
import unicodedata

from driftproof.verify.answers.tables import GREEK

_LONGEST_ARGUMENT = 200
"""Characters of the bracketed argument of a root."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓ", "0123456789+-=()nix")
_RAISED, _LOWERED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓ]+")
_DRAWN_OVER = re.compile("(?:\\d[\u0305\u0304])+"), re.compile("\\d\u0307")
_ROOT_SIGN = re.compile(r"([√∛∜]) ?(\d+(?:\.\d+)?|[a-zA-Z])")
_UNIT_POWER = re.compile("(?<=\\d) ?(mm|cm|dm|km|m|ft|in|yd|mi)([²³])")
_VULGAR = re.compile("(\\d*)⁄(\\d+)")

_SYMBOLS = {
    **dict.fromkeys("−‐‑‒–﹣", "-"),
    **dict.fromkeys("⋅∙·•", r"\cdot "),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("≈≃≅", r"\approx "),
    **dict.fromkeys("°º˚", r"^{\circ}"),
    **dict.fromkeys("∅⌀", r"\emptyset "),
    **dict.fromkeys("∕⧸", "/"),
    **dict.fromkeys("\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\u00a0\t", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\ufeff\u00ad\ufe0f", ""),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("“”„", '"'),
    **{"×": r"\times ", "✕": r"\times ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "≠": r"\ne ", "∞": r"\infty "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "√": r"\sqrt", "∛": r"\sqrt[3]"},
    **{"∜": r"\sqrt[4]", "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "∣": "|"},
    **{"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}"},
    **{"…": r"\ldots ", "⋯": r"\cdots ", "∠": r"\angle ", "△": r"\triangle ", "∧": r"\wedge ", "∨": r"\vee "},
    **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∝": r"\propto ", "ℓ": "l"},
    **{"。": ". ", "【": "[", "】": "]", "「": '"', "」": '"', "、": ", "},
}
_GREEK = {letter: rf"\{name} " for letter, name in GREEK.items()}
_TABLE = str.maketrans(_SYMBOLS | _GREEK)


def as_latex(text: str) -> str:
    r"""The text with LaTeX and ASCII for what Unicode has signs of its own: minus, roots, fractions, powers, widths."""
    if text.isascii():
        return text
    text = _UNIT_POWER.sub(lambda found: rf" \text{{{found[1]}}}^{found[2].translate(_SUPERSCRIPTS)}", text)
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{found[0].translate(_SUBSCRIPTS)}}}", text)
    text = _DRAWN_OVER[0].sub(lambda found: rf"\overline{{{found[0][::2]}}}", text)
    text = _DRAWN_OVER[1].sub(lambda found: rf"\dot{{{found[0][0]}}}", text)
    text = _ROOT_SIGN.sub(lambda found: f"{found[1]}{{{found[2]}}}", text)
    text = _full_width_to_ascii(text.translate(_TABLE))
    return _VULGAR.sub(lambda found: rf"\frac{{{found[1] or 1}}}{{{found[2]}}}", text)


def _full_width_to_ascii(text: str) -> str:
    """Compatibility characters (full width, ligatures, styled letters, vulgar fractions) by their plain ones.

    A fraction behind a digit stays apart from it: `3½` is a mixed number, not 31/2.
    """
    return "".join(
        character
        if character < "\x80" or not unicodedata.decomposition(character).startswith("<")
        else _separated(unicodedata.normalize("NFKC", character))
        for character in text
    )


def _separated(plain: str) -> str:
    return f" {plain}" if "⁄" in plain else plain


_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|lcm|gcd"
_GREEK_NAMES = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|sigma|phi|omega|rho|tau|pi"
_WORDS = (
    # Names of functions and letters in plain text; not behind a backslash or inside a word.
    (re.compile(rf"(?<![a-zA-Z\\])({_FUNCTIONS})(?![a-zA-Z])"), r"\\\1 "),
    (re.compile(r"\\log\s+_"), r"\\log_"),
    (re.compile(rf"(?<![a-zA-Z\\])({_GREEK_NAMES})(?![a-zA-Z])", re.I), lambda found: rf"\{found[1].lower()} "),
    (re.compile(r"(?<![a-zA-Z\\])(?:infinity|infty|inf|oo)(?![a-zA-Z])", re.I), r"\\infty "),
    (re.compile(r"(?<![a-zA-Z\\])sqrt(?=\s*[\d({[a-zA-Z])"), r"\\sqrt"),
    (re.compile(r"(?<![a-zA-Z\\])cbrt(?=\s*[({])"), r"\\sqrt[3]"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\+/-|\+-"), r"\\pm "),
)
_ROOT, _POWER = re.compile(r"\\sqrt(\[\d+\])?\s*\("), re.compile(r"\^\s*\(")
_BARE_ROOT = re.compile(r"\\sqrt(?:\s+(\d+)|([a-zA-Z]))(?![a-zA-Z])")
_SIGNED_POWER = re.compile(r"\^\s*([-+]?\d+(?:\.\d+)?)")


def plain_mathematics(text: str) -> str:
    r"""The expression with commands for what is written in ASCII: `sqrt(3)/2*pi` becomes `\sqrt{3}/2*\pi `."""
    for pattern, replacement in _WORDS:
        text = pattern.sub(replacement, text)
    text = _braced(_braced(text, _ROOT), _POWER)
    text = _BARE_ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text)
    return _SIGNED_POWER.sub(r"^{\1}", text)


def _braced(text: str, opening: re.Pattern[str]) -> str:
    """Braces for the round brackets that `opening` ends in, as far as they are closed nearby."""
    position = 0
    while found := opening.search(text, position):
        position = found.end()
        end = closing(text, found.end() - 1, _LONGEST_ARGUMENT)
        if end is not None:
            text = f"{text[: found.end() - 1]}{{{text[found.end() : end]}}}{text[end + 1 :]}"
    return text


def closing(text: str, start: int, within: int = 2_000) -> int | None:
    """The position of the bracket that closes the one at `start`, at most `within` characters on; None without it."""
    depth = 0
    for position in range(start, min(len(text), start + within)):
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
            if not depth:
                return position
    return None
