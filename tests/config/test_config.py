"""Gin configurations: what is read, what is refused, and what the messages say."""

import re

import gin
import gin_helpers
import pytest

from promot_t5x import config
from promot_t5x.errors import UserError

HEADER = "from __gin__ import dynamic_registration\nimport gin_helpers\n"
MODEL = (
    HEADER
    + """
VOCABULARY = @gin_helpers.words()
PATH = 'words.model'
gin_helpers.words.path = %PATH
MODEL = @gin_helpers.Model()
gin_helpers.Model:
    width = %WIDTH
    depth = %DEPTH
    vocabulary = %VOCABULARY
DEPTH = %gin.REQUIRED
"""
)
RUN = (
    HEADER
    + """
BATCH_SIZE = %gin.REQUIRED
gin_helpers.drill:
    model = %MODEL
    batch_size = %BATCH_SIZE
    stages = %STAGES
STAGES = ()
"""
)
GIVEN = ("WIDTH = 7", "DEPTH = 1", "BATCH_SIZE = 64")


@pytest.fixture
def read(tmp_path):
    """read(*bindings, extra='gin text') parses and checks model, run and extra files."""
    (tmp_path / "model.gin").write_text(MODEL)
    (tmp_path / "run.gin").write_text(RUN)

    def read(*bindings, extra=None, files=("model.gin", "run.gin")):
        if extra is not None:
            (tmp_path / "extra.gin").write_text(extra)
            files = (*files, "extra.gin")
        function = config.configured(gin_helpers.drill)
        config.parse(files, bindings, [tmp_path])
        config.check([gin_helpers.drill])
        return function

    return read


def refusal(read, *bindings, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        read(*bindings, **kwargs)
    return str(error.value)


def test_files_then_command_line_reach_the_function(read):
    result = read(*GIVEN, "BATCH_SIZE = 16", "drill.steps = 5", "gin_helpers.drill.label = 'x'")()
    assert result["batch_size"] == 16
    assert (result["width"], result["depth"], result["steps"]) == (7, 1, 5)
    assert (result["vocabulary"], result["label"]) == ("words.model", "x")


def test_later_files_override_earlier_ones(read):
    assert read(*GIVEN, extra="WIDTH = 1\nPATH = 'other'\n")()["vocabulary"] == "other"


def test_a_function_that_no_file_names_can_be_configured():
    function = config.configured(gin_helpers.letters)
    config.parse([])
    config.check([gin_helpers.letters])
    assert function() == "letters"


def test_parsing_starts_afresh(read):
    read(*GIVEN, "drill.label = 'old'")
    assert read(*GIVEN)()["label"] == ""


# ------------------------------------------------------------------------- unread and unreadable


def test_missing_file_says_where_it_was_looked_for(read, tmp_path):
    message = refusal(read, files=("modle.gin",))
    assert "Did you mean 'model.gin'?" in message
    assert f"\n  {tmp_path / 'modle.gin'}" in message
    assert f"\n  {config.gin_root() / 'modle.gin'}" in message


def test_missing_include_names_the_including_line(read, tmp_path):
    message = refusal(read, *GIVEN, extra="\ninclude 'nothing.gin'\n")
    assert message.startswith(f"{tmp_path / 'extra.gin'}:2: no gin file 'nothing.gin'")


def test_includes_in_a_circle(read):
    assert "in a circle" in refusal(read, *GIVEN, extra="include 'extra.gin'\n")


def test_shipped_files_are_found_by_both_names():
    for name in ("models/sizes/t5_1_1_small.gin", "gin/models/sizes/t5_1_1_small.gin"):
        config.parse([name])
        assert gin.query_parameter("EMBED_DIM/macro.value") == 512


def test_the_users_search_path_comes_first(read, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mt5.gin").write_text("LABEL = 'mine'\n")
    config.parse(["models/mt5.gin"], [], [tmp_path])
    assert gin.query_parameter("LABEL/macro.value") == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A = rte", '"rte"'),
        ("A = [1,\n", "multi-line"),
        ("A = $", "Unable to parse value"),
        ("nonsense\n", "expected ':' or '='"),
        ("import absent_module", "cannot import absent_module"),
        (
            "from __gin__ import dynamic_registration\nfrom gin_helpers import drill\n",
            "import gin_helpers",
        ),
        (
            HEADER + "gin_helper.drill.steps = 1",
            "'gin_helper' is not imported here. Did you mean 'gin_helpers'?",
        ),
        (HEADER + "gin_helpers.dirll.steps = 1", "no 'dirll'. Did you mean 'drill'?"),
        (HEADER + "gin_helpers.dirll:\n  steps = 1\n", "no 'dirll'. Did you mean 'drill'?"),
        (HEADER + "A = @gin_helpers.Modle()", "no 'Modle'. Did you mean 'Model'?"),
        (HEADER + "gin_helpers.NOT_CALLABLE.x = 1", "of type int, not a function"),
        (HEADER + "gin_helpers.steps = 1", "gin_helpers is of type module, not a function"),
        (HEADER + "gin_helpers.drill.step = 1", "no parameter 'step'. Did you mean 'steps'?"),
        ("unheard.of = 1", "from __gin__ import dynamic_registration"),
    ],
)
def test_bad_statement_is_located_and_explained(read, tmp_path, text, said):
    message = refusal(read, *GIVEN, extra=text)
    assert re.match(re.escape(str(tmp_path / "extra.gin")) + r":\d+: ", message)
    assert said in message


def test_unquoted_string_on_the_command_line_shows_the_quoting(read):
    message = refusal(read, *GIVEN, "PATH = rte")
    assert message.startswith("command line: ")
    assert "--gin.PATH='\"rte\"'" in message


def test_a_binary_file_is_refused(read, tmp_path):
    (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in refusal(read, files=("binary.gin",))


# ------------------------------------------------------------------------------ missing values


def test_all_missing_values_are_named_at_once(read, tmp_path):
    message = refusal(read)
    assert "3 problems" in message
    assert "- BATCH_SIZE must be given" in message
    assert "- DEPTH must be given" in message
    assert f"- {tmp_path / 'model.gin'}:9: gin_helpers.Model.width uses %WIDTH" in message
    assert "--gin.BATCH_SIZE=VALUE" in message


def test_a_required_value_that_the_run_does_not_use_is_not_asked_for(read):
    read(*GIVEN[1:], "MODEL = @gin_helpers.Model()", "Model.width = 3")
    assert read(*GIVEN, "VOCABULARY = @gin_helpers.letters()")()["vocabulary"] == "letters"


def test_a_parameter_without_value_is_named(read):
    read(*GIVEN)
    message = refusal(read, *GIVEN[2:], "MODEL = @gin_helpers.Model()", files=("run.gin",))
    assert "gin_helpers.Model in scope 'MODEL' has no value for 'width'" in message


def test_a_configuration_for_another_function(read):
    message = refusal(read, files=("model.gin",))
    assert message.startswith("the configuration binds nothing of gin_helpers.drill")
    assert "\n" not in message


def test_a_flood_of_problems_is_cut_short(read):
    message = refusal(read, *GIVEN, *(f"UNUSED_{i} = 1" for i in range(30)))
    assert "30 problems" in message
    assert message.endswith("and 10 more")


def test_values_that_need_each_other(read):
    assert "need each other" in refusal(read, *GIVEN[:2], "A = %B", "B = %A", "BATCH_SIZE = %A")


# ------------------------------------------------------------------------------ unused values


@pytest.mark.parametrize(
    ("macro", "meant"), [("BACTH_SIZE", "BATCH_SIZE"), ("WIDHT", "WIDTH"), ("stages", "STAGES")]
)
def test_misspelled_macro(read, macro, meant):
    message = refusal(read, *GIVEN, f"{macro} = 64")
    assert f"nothing in this run uses the macro {macro} (= 64)" in message
    assert meant == "STAGES" or f"Did you mean '{meant}'?" in message


def test_macros_that_only_unused_macros_use_are_reported_once(read):
    message = refusal(read, *GIVEN, "A = %B", "B = 1")
    assert "the macro A" in message
    assert "problems" not in message


def test_macros_that_only_use_each_other(read):
    assert "nothing but itself uses the macro A" in refusal(read, *GIVEN, "A = %B", "B = %A")


def test_binding_on_something_that_the_run_never_calls(read, tmp_path):
    message = refusal(read, *GIVEN, extra=HEADER + "gin_helpers.adam.beta = 0.5\n")
    assert message == (
        f"{tmp_path / 'extra.gin'}:3: gin_helpers.adam.beta has no effect: "
        "this run never calls gin_helpers.adam."
    )


def test_the_root_of_another_run_is_not_called_in_this_one(read):
    config.configured(gin_helpers.adam)
    assert "never calls" in refusal(read, *GIVEN, "gin_helpers.adam.beta = 0.5")


STAGED = (
    HEADER
    + """
STAGES = [@one/gin_helpers.Stage(), @two/gin_helpers.Stage()]
gin_helpers.Stage.optimizer = @gin_helpers.adam
gin_helpers.adam.beta = 0.5
one/gin_helpers.Stage.rate = 1
"""
)


def test_scoped_bindings_apply_in_their_scope(read):
    stages = read(*GIVEN, extra=STAGED + "two/gin_helpers.adam.beta = 0.7\n")()["stages"]
    assert stages == [(1, 0.5), (0.1, 0.7)]


def test_misspelled_scope(read):
    message = refusal(read, *GIVEN, extra=STAGED + "tow/gin_helpers.Stage.rate = 1\n")
    assert "calls gin_helpers.Stage in 'one', 'two', not in scope 'tow'" in message
    assert "Did you mean 'two'?" in message


def test_scopes_do_not_pass_through_macros(read):
    # As gin does it: the value of a macro is evaluated in a scope of the macro's name.
    message = refusal(read, *GIVEN, extra=HEADER + "one/gin_helpers.Model.depth = 9\n")
    assert "in 'MODEL', not in scope 'one'" in message
    assert "A macro's value is evaluated in the macro's own scope" in message
    assert read(*GIVEN, "MODEL/gin_helpers.Model.depth = 9")()["depth"] == 9


def test_a_bound_method_is_reached_through_its_class(read):
    extra = (
        HEADER
        + "gin_helpers.drill.scaler = @gin_helpers.Scaler()\ngin_helpers.Scaler.apply.factor = 5\n"
    )
    assert read(*GIVEN, extra=extra)()["factor"] == 5


def test_a_singleton_is_reached_through_its_name(read):
    extra = (
        HEADER
        + "gin_helpers.drill.label = @common/gin.singleton()\n"
        + "common/gin.singleton.constructor = @gin_helpers.letters\n"
    )
    assert read(*GIVEN, extra=extra)()["label"] == "letters"


def test_what_is_decorated_in_its_own_module_may_be_called_from_anywhere(read):
    read(*GIVEN, extra=HEADER + "gin_helpers.decorated.level = 3\n")
    assert gin_helpers.decorated() == 3


# --------------------------------------------------------------- overrides excuse what came before


def test_bindings_of_an_overridden_reference_are_dropped(read):
    read(*GIVEN, "VOCABULARY = @gin_helpers.letters()")
    text = config.resolved_str()
    assert "words" not in text
    assert "PATH" not in text


def test_but_not_those_written_after_or_with_the_override(read):
    letters = "VOCABULARY = @gin_helpers.letters()"
    message = refusal(read, *GIVEN, letters, "PATH = 'x'")
    assert "nothing in this run uses the macro PATH" in message
    message = refusal(read, *GIVEN, "gin_helpers.words.path = 'x'", letters)
    assert "never calls gin_helpers.words" in message
    extra = HEADER + letters + "\nPATH = 'x'\n"
    assert "the macro PATH" in refusal(read, *GIVEN, extra=extra)


# ------------------------------------------------------------------------ the resolved text


def test_resolved_text_reads_back_as_itself(read, tmp_path):
    read(*GIVEN, "VOCABULARY = @gin_helpers.letters()", extra=STAGED)
    expected = config.configured(gin_helpers.drill)()
    text = config.resolved_str()
    (tmp_path / "again.gin").write_text(text)
    function = read(files=("again.gin",))
    assert config.resolved_str() == text
    assert function() == expected


def test_resolved_text_is_sorted_macros_first(read):
    read(*GIVEN)
    lines = config.resolved_str().splitlines()
    macros = [line.split(" = ")[0] for line in lines if re.match(r"[A-Z_]+ = ", line)]
    assert macros == sorted(macros)
    assert "BATCH_SIZE" in macros
    assert lines.index("BATCH_SIZE = 64") < lines.index(
        "gin_helpers.drill.batch_size = %BATCH_SIZE"
    )


def test_describe_difference():
    old = HEADER + "A = 1\nB = [1,\n  2]\ngone/gin_helpers.Stage.rate = 1\n"
    new = HEADER + "B = [1, 2]\nA = 2\nC = @gin_helpers.Model()\nx.unknown = %A\n"
    assert config.describe_difference(old, new) == [
        "A: was 1, now 2",
        "C: was not set, now @gin_helpers.Model()",
        "gone/gin_helpers.Stage.rate: was 1, now not set",
        "x.unknown: was not set, now %A",
    ]
    assert config.describe_difference(old, old) == []
    earlier = "a/stages.Stage.trainable = ['(?!encoder/prompt/).*']"
    assert config.describe_difference(earlier, "a/stages.Stage.trainable = ['model']") == []
    assert config.describe_difference(earlier, "a/stages.Stage.trainable = ['all']") != []


def test_describe_difference_refuses_what_is_no_gin():
    with pytest.raises(UserError, match="the old configuration:1"):
        config.describe_difference("not gin", "A = 1")
