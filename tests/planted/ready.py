"""What users of many kinds meet: saves of many processes."""

from tests.planted import Bug

VOUCHED, SHARED = "experiments/workdir/vouched.py", "experiments/workdir/shared.py"
BOTH = ("tests/experiments/workdir/shared_test.py",)

BUGS = (
    Bug("one process hashes what all wrote", VOUCHED, "int(told[1]) if told and int(told[1]) < count else 0", "0", BOTH),
    Bug("what nobody is named for is hashed by nobody", VOUCHED, "< count else 0", "< count else -1", BOTH),
    Bug("every process verifies all", VOUCHED, "shares(sizes, part[1])[part[0]]", "sorted(sizes)", BOTH),
    Bug("every process verifies the first share", VOUCHED, "shares(sizes, part[1])[part[0]]", "shares(sizes, part[1])[0]", BOTH),
    Bug("who failed does not say so", SHARED, 'reason(failure) if failure else ""), decide', '""), decide', BOTH),
    Bug("a failure elsewhere is not heard", SHARED, 'if told != "":', 'if told == "-":', BOTH),
)  # fmt: skip
