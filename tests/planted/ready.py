"""What users of many kinds meet: saves of many processes."""

from tests.planted import Bug

VOUCHED, SHARED = "experiments/workdir/vouched.py", "experiments/workdir/shared.py"
SAMPLES, MORE, SAVED = "experiments/training/samples.py", "experiments/report/more.py", "experiments/workdir/saved.py"
LINES = ("tests/experiments/training/samples_test.py",)
BOTH = ("tests/experiments/workdir/shared_test.py",)

BUGS = (
    Bug("one process hashes what all wrote", VOUCHED, "int(told[1]) if told and int(told[1]) < count else 0", "0", BOTH),
    Bug("what nobody is named for is hashed by nobody", VOUCHED, "< count else 0", "< count else -1", BOTH),
    Bug("every process verifies all", VOUCHED, "shares(sizes, part[1])[part[0]]", "sorted(sizes)", BOTH),
    Bug("every process verifies the first share", VOUCHED, "shares(sizes, part[1])[part[0]]", "shares(sizes, part[1])[0]", BOTH),
    Bug("who failed does not say so", SHARED, 'reason(failure) if failure else ""), decide', '""), decide', BOTH),
    Bug("a failure elsewhere is not heard", SHARED, 'if told != "":', 'if told == "-":', BOTH),
    Bug("a sample begins with the first answer", SAMPLES, "tokens[: first + ahead]", "tokens[: first + ahead + 1]", LINES),
    Bug("half a line is continued", SAMPLES, "text if whole or not rest.strip() else rest", "text",
        ("tests/experiments/training/samples_test.py",)),
    Bug("words are cut", SAMPLES, 'line[:_MOST].rpartition(" ")[0].rstrip() or line[:_MOST]', "line[:_MOST]", LINES),
    Bug("numbers of a comparison lose their run", MORE, '({"run": run.name} if several else {})', "{}",
        ("tests/experiments/report/report_test.py::test_constants_are_told_measures_have_names_and_numbers_can_be_taken_away",)),
    Bug("an older run names all that it lacks", SAVED, "list(settings.items())[:_NAMED]", "list(settings.items())",
        ("tests/experiments/settings/history_test.py::test_of_many_settings_four_are_named_and_the_rest_counted",)),
    Bug("a pipe without a writer is waited for", "experiments/settings/named.py", "if not first:", "if first is None:",
        ("tests/experiments/cli_test.py::test_prompts_may_come_through_a_pipe_and_one_that_nobody_writes_into_is_refused_at_once",)),
)  # fmt: skip
