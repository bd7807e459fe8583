"""One table of names: what is emitted, what is shown and what the docs say."""

import re
from pathlib import Path

import driftproof
from driftproof.metrics import names
from driftproof.metrics.names import ROWS
from tests.metrics.page import BLOCK, PAGE, filled

SRC = Path(driftproof.__file__).parent
ALL = [row for rows in ROWS.values() for row in rows]
CONSTANTS = {name: value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
PLACES = {
    "display": ["report/display.py", "report/view.py", "report/overlap.py"],
    "picture": ["report/picture.py", "report/overlap.py"],
    "summary": ["report/summary.py", "report/overlap.py"],
    "alarm": ["metrics/collapse.py"],
}


def test_the_tables_of_the_docs_are_made_of_the_names() -> None:
    page = PAGE.read_text()
    assert {block["section"] for block in BLOCK.finditer(page)} == set(ROWS)
    assert page == filled(page), "write them anew: python -m tests.metrics.page"


def test_every_name_is_there_once() -> None:
    every = [name for row in ALL for name in row.names]
    assert len(every) == len(set(every))
    assert all(re.fullmatch(r"((health|objective|time|rollout)/)?[a-z0-9_]+|reward/NAME", name) for name in every)
    of_code = {name for section, rows in ROWS.items() if section != "objective" for row in rows for name in row.names}
    assert set(CONSTANTS.values()) == of_code


def test_a_metric_is_shown_where_the_table_says() -> None:
    for place, files in PLACES.items():
        text = "".join((SRC / file).read_text() for file in files)
        used = {CONSTANTS[name] for name in re.findall(r"\bnames\.([A-Z_0-9]+)\b", text) if name in CONSTANTS}
        told = [row for row in ALL if place in row.shown]
        assert used <= {name for row in told for name in row.names}, place
        assert all(used & set(row.names) for row in told), place
    assert {place for row in ALL for place in row.shown} == PLACES.keys()
