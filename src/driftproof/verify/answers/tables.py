"""The words that the readers of answers know: functions, letters, measures, and words that are no units."""

from fractions import Fraction


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FUNCTIONS = frozenset(
    _words("""
    sin cos tan cot sec csc log ln exp arcsin arccos arctan sinh cosh tanh gcd lcm min max det lim arg deg dim
    """)
)
"""Names of functions, as LaTeX has commands for them."""
UNITS_OR_FUNCTIONS = frozenset(("min", "sec", "deg"))
"""Names of functions that are units in upright type."""
MATHEMATICAL_WORDS = frozenset(
    _words("""
    sin cos tan cot sec csc log exp arcsin arccos arctan sinh cosh tanh sqrt cbrt lcm gcd mod infinity inf infty
    pi alpha beta gamma delta epsilon theta lambda sigma phi omega rho tau
    """)
)
"""Words of three letters and more that are mathematics in plain text."""

GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϵϑϕµ",
        _words("""
        alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi
        omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega epsilon theta phi mu
        """),
        strict=True,
    )
)
"""Greek letters and the names of their commands."""

BASES = {name: str(base) for base, name in enumerate(_words("two three four five six seven eight nine ten"), start=2)}
BASES |= {"twelve": "12", "sixteen": "16"}

SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
"""Words behind a number that multiply it."""

_MEASURES = """
    mm: millimeter millimetre mm
    cm: centimeter centimetre cm
    m: meter metre m
    km: kilometer kilometre km kms
    in: inch inche in
    ft: foot feet ft
    yd: yard yd
    mi: mile mi
    mg: milligram mg
    g: gram gm g
    kg: kilogram kg kilo
    lb: pound lb
    oz: ounce oz
    ml: milliliter millilitre ml
    l: liter litre l
    gal: gallon gal
    s: second sec s
    min: minute min
    h: hour hr h
    day: day
    week: week wk
    month: month mo
    year: year yr
    deg: degree deg
    rad: radian rad
    dollar: dollar usd buck
    cent: cent ¢
    euro: euro eur
    sterling: gbp
    rupee: rupee rs inr
    yuan: yuan rmb cny
    unit: unit
    N: newton
    J: joule
    kJ: kilojoule kj
    W: watt
    kW: kilowatt kw
    V: volt
    Hz: hertz hz
    Pa: pascal pa
    K: kelvin
    mol: mole mol
    eV: ev electronvolt
    mi/h: mph
    km/h: kph kmh kmph
"""
MEASURES = {
    name: line.partition(":")[0].strip()
    for line in _MEASURES.strip().splitlines()
    for name in line.partition(":")[2].split()
}
"""The names and short forms of known measures, and one name for each measure."""
RATIOS = {
    ("mm", "m"): Fraction(1, 1000),
    ("cm", "m"): Fraction(1, 100),
    ("km", "m"): Fraction(1000),
    ("ft", "in"): Fraction(12),
    ("yd", "in"): Fraction(36),
    ("mi", "in"): Fraction(63360),
    ("mg", "g"): Fraction(1, 1000),
    ("kg", "g"): Fraction(1000),
    ("ml", "l"): Fraction(1, 1000),
    ("min", "s"): Fraction(60),
    ("h", "s"): Fraction(3600),
    ("day", "s"): Fraction(86400),
    ("week", "s"): Fraction(604800),
    ("cent", "dollar"): Fraction(1, 100),
    ("kJ", "J"): Fraction(1000),
    ("kW", "W"): Fraction(1000),
}
"""Sizes of measures in the base of their kind."""
LETTER_UNITS = frozenset(_words("m s g h l L N J W V A K C F T"))
"""Units of one letter: they count behind white space or in upright type alone."""
PREPOSITIONS = frozenset(("to", "from"))
"""Words that begin no unit: `7 to 8`, but `7 ways to go`."""
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(_words("zero one two three four five six seven eight nine ten eleven twelve"))
}
NO_UNITS = frozenset(
    _words("""
    or and not maybe perhaps than less then if is are was be between minus plus times over out but mod
    pi sqrt sin cos tan log ln exp infinity inf half halves quarter quarters squared cubed factorial base choose either
    neither no only least most about approximately where when x y z i e b c d approx same true false undefined divided
    root which because since so hence wait other another until into versus vs percent percentage tens ones below above
    negative positive wrong incorrect correct doubled tripled halved inverse inverted reversed backwards remainder
    dozens hundreds thousands millions billions trillions multiplied
    """)
)
"""Words with which something behind a number is no unit; ordinals (`sevenths`) are not among units either."""
