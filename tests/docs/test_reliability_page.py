"""docs/reliability.md: the tests that it names exist, and its statuses are the program's."""

import re
from pathlib import Path

from promot_t5x import errors

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def test_every_promise_names_a_test_that_exists():
    named, file = 0, ""
    for path, name in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", PAGE):
        file = path or file
        if path:
            assert (ROOT / "tests" / path).is_file(), path
        if name:
            named += 1
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), (file, name)
    assert named > 25


def test_the_table_of_statuses_is_the_programs():
    rows = re.findall(r"^\| ([\d, ]+) \| .* \| (yes|no) \|$", PAGE, re.MULTILINE)
    repeated = {int(n): answer for numbers, answer in rows for n in numbers.split(", ")}
    final = {0, errors.EXIT_INTERRUPTED, *errors.NEVER_REPEATED}
    assert {status for status, answer in repeated.items() if answer == "no"} == final
    assert {errors.EXIT_FAULT, errors.EXIT_START_AGAIN} <= repeated.keys() - final
