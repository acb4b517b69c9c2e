"""Fingerprints: what changes tokens changes the hash, and nothing else does."""

import functools
import types

import numpy as np
import pytest

from promot_t5x.data.fingerprint import digest


def module_of(code):
    module = types.ModuleType("users_module")
    exec(compile(code, "/nowhere/users_module.py", "exec"), module.__dict__)
    return module


BASE = """
import functools
WORDS = ("no", "yes")
class Upper:
    mark = "!"
    def __init__(self, times): self.times = times
    def __call__(self, text): return self.loud(text) * self.times
    @staticmethod
    def loud(text): return text.upper() + Upper.mark
def helper(text): return text + WORDS[0]
def outer(number):
    def inner(text, *, limit=3): return helper(text)[:limit] * number
    return inner
step = outer(2)
part = functools.partial(helper, text="a")
call = Upper(2)
def recursive(n): return recursive(n - 1) if n else 0
"""


@pytest.mark.parametrize("name", ["step", "part", "call", "recursive"])
def test_the_same_code_has_the_same_hash(name):
    digests = {digest(getattr(module_of(BASE), name)) for _ in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("step", '"no"', '"nay"'),
        ("step", "text + WORDS", "text * 2 + WORDS"),
        ("step", "limit=3", "limit=4"),
        ("step", "outer(2)", "outer(3)"),
        ("part", '"a"', '"b"'),
        ("part", "WORDS[0]", "WORDS[1]"),
        ("call", "Upper(2)", "Upper(3)"),
        ("call", "text.upper()", "text.lower()"),
        ("call", 'mark = "!"', 'mark = "?"'),
        ("recursive", "else 0", "else 1"),
    ],
)
def test_a_change_that_reaches_the_tokens_changes_the_hash(name, old, new):
    assert old in BASE
    changed = getattr(module_of(BASE.replace(old, new)), name)
    assert digest(getattr(module_of(BASE), name)) != digest(changed)


def test_what_a_function_does_not_use_is_no_part_of_it():
    more = module_of(BASE + "UNUSED = 3\ndef stranger(): return UNUSED\n")
    assert digest(more.step) == digest(module_of(BASE).step)


def test_a_function_follows_the_modules_it_reads_from():
    templates = types.ModuleType("templates")
    templates.__file__ = "/nowhere/templates.py"
    templates.FORM = "a {}"
    user = module_of("def step(text): return templates.FORM.format(text)")
    user.templates = templates
    before = digest(user.step)
    templates.FORM = "b {}"
    assert digest(user.step) != before


def test_files_named_by_strings_count_with_their_content(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    step = functools.partial(open, str(file))
    before = digest(step)
    assert digest(step) == before
    file.write_text("{}\n{}\n")
    assert digest(step) != before


def test_plain_values_cycles_and_arrays():
    looped = {"a": 1}
    looped["self"] = looped
    assert digest(looped) == digest(looped)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, "1"]) != digest(["1", 1])
    assert digest({3, 1, 2}) == digest({2, 3, 1})
    assert digest(np.arange(3)) != digest(np.arange(4))


def test_library_functions_count_by_name_and_content():
    assert digest(np.mean) != digest(np.median)
    assert digest(len) != digest(max)
