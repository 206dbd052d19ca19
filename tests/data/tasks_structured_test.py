"""Tasks where order matters: every answer follows from its prompt, by solvers that read nothing but the row."""

import collections
import itertools

import numpy as np
import pytest

from data import tasks


def read(task, length, count=300):
    """(prompt, answer with its END and pads) of rows, as lists."""
    sequence, answers = task.sample(7, np.arange(count), length)
    for row, asked in zip(sequence, answers, strict=True):
        assert (row[asked] >= 0).all() and asked.any()
        yield [int(v) for v in row[~asked] if v >= 0], [int(v) for v in row[asked]]


def unpadded(answer, end, room, pads):
    """The answer before its END; asserts that END and the padding are as they should be."""
    size = answer.index(end)
    assert len(answer) == (room or size + 1)
    behind = answer[size + 1 :]
    assert behind == [end + 1 + j % pads if pads else end for j in range(len(behind))]
    return answer[:size]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("operation", "room", "pads"), [("add", 0, 0), ("multiply", 9, 3), ("add", 6, 0)])
def test_sums_and_products_are_right(operation, room, pads, reverse):
    task = tasks.make("arithmetic", {"operation": operation, "reverse": reverse, "room": room, "pads": pads})
    sizes = set()
    for prompt, answer in read(task, task.least_length()):
        a, b = (
            int("".join(map(str, part))) for part in (prompt[: prompt.index(10)], prompt[prompt.index(10) + 1 : -1])
        )
        assert prompt[-1] == 11 and prompt == [*map(int, str(a)), 10, *map(int, str(b)), 11]  # No leading zeros.
        digits = unpadded(answer, 12, room, pads)
        want = [*map(int, str(a + b if operation == "add" else a * b))]
        assert digits == (want[::-1] if reverse else want)
        sizes.add(len(digits))
    assert sizes == set(range(1, task.longest + 1))


GROUPS = [text for n in (1, 2, 3) for text in map("".join, itertools.product("0123456789", repeat=n))]


@pytest.mark.parametrize(
    ("settings", "cuts"),  # where numbers of 1 to 5 digits are cut
    [
        ({"group": 3}, {1: "1", 2: "2", 3: "3", 4: "13", 5: "23"}),
        ({"group": 3, "from_left": True}, {1: "1", 2: "2", 3: "3", 4: "31", 5: "32"}),
        ({"group": 2, "from_left": True, "reverse": True}, {1: "1", 2: "2", 3: "21", 4: "22", 5: "221"}),
    ],
)
def test_digits_in_groups_are_symbols_of_their_own(settings, cuts):
    task = tasks.make("arithmetic", {"digits": 4, **settings})
    count = {2: 110, 3: 1110}[task.group]
    assert task.num_symbols == count + 3 and task.end == count + 2
    assert max(GROUPS.index(text) for text in GROUPS if len(text) <= task.group) == count - 1
    sizes, (rows, _) = set(), task.sample(7, np.arange(300), task.least_length())
    for (prompt, answer), told in zip(read(task, task.least_length()), task.lengths(rows), strict=True):
        first, then = prompt.index(count), prompt.index(count + 1)
        parts = prompt[:first], prompt[first + 1 : then], unpadded(answer, count + 2, 0, 0)
        made = [[GROUPS[k] for k in part] for part in parts]
        made[2] = made[2][::-1] if task.reverse else made[2]
        a, b, c = ("".join(each) for each in made)
        assert c == str(int(a) + int(b)) and a == str(int(a)) and b == str(int(b))
        assert told.tolist() == [len(a), len(b), len(c)]
        for each in made:
            assert "".join(str(len(text)) for text in each) == cuts[sum(map(len, each))]
        sizes.add(len(c))
    assert sizes == {1, 2, 3, 4, 5} and then + 1 == len(prompt)


@pytest.mark.parametrize(("least", "reverse"), [(4, False), (2, False), (2, True)])
def test_the_path_of_a_star_leads_from_its_centre_to_the_goal(least, reverse):
    task = tasks.make("star_graph", {"least": least, "reverse": reverse})
    lengths, firsts = set(), collections.Counter()
    for prompt, answer in read(task, task.least_length()):
        *edges, ask, centre, goal, then = prompt
        assert (ask, then) == (20, 21)
        parent = dict(zip(edges[1::2], edges[::2], strict=True))
        degree = collections.Counter(edges[::2])
        assert degree.pop(centre) == 3 and set(degree.values()) <= {1} and len(parent) == len(edges) // 2
        path = [goal]
        while parent[path[0]] != centre:
            path.insert(0, parent[path[0]])
        found = unpadded(answer, 22, 0, 0)
        assert found == (path[::-1] if reverse else path)
        assert goal not in edges[::2]  # An end.
        lengths.add(len(path))
        firsts[edges.index(goal) // 2] += 1
    assert lengths == set(range(least, 5)) and len(firsts) > 6


def test_every_sudoku_has_one_solution_and_it_is_the_answer():
    assert len(tasks.sudoku.solved()) == 288
    counts = collections.Counter()
    for prompt, answer in read(tasks.make("sudoku"), 40, count=60):
        cells, solve, given = np.array(prompt[:16]), prompt[16], prompt[17:]
        assert solve == 5 and given == [v for v in cells if v < 4]
        (grid,) = solutions(list(cells))
        assert [v for v, c in zip(grid, cells, strict=True) if c == 4] == answer
        counts[len(answer)] += 1
    assert max(counts) >= 10 and min(counts) >= 6


def solutions(cells):
    """All ways to fill the blanks (4) of a list of 16 cells, by trying each digit."""
    if 4 not in cells:
        return [cells]
    at = cells.index(4)
    row, column = divmod(at, 4)
    seen = {cells[4 * row + k] for k in range(4)} | {cells[4 * k + column] for k in range(4)}
    seen |= {cells[4 * r + c] for r in range(4) for c in range(4) if (r // 2, c // 2) == (row // 2, column // 2)}
    tries = (solutions([*cells[:at], digit, *cells[at + 1 :]]) for digit in set(range(4)) - seen)
    return list(itertools.chain.from_iterable(tries))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_gap_is_what_both_sides_say(in_place):
    task, seen = tasks.make("infilling", {"in_place": in_place}), set()
    for prompt, answer in read(task, task.least_length()):
        sides = [v for v in prompt if v < 11]
        left, right, step = sides[:3], sides[3:], (sides[1] - sides[0]) % 11
        want = [(left[-1] + step * (i + 1)) % 11 for i in range(11)]
        want = want[: want.index(right[0])]
        assert (answer if in_place else unpadded(answer, 13, 0, 0)) == want
        seen.add(len(want))
    assert seen == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("arithmetic", "operation=divide", "operation='divide' is not known; use add or multiply."),
        ("arithmetic", "digits=12", "digits=12 makes answers beyond 64 bits; use 9 or fewer."),
        ("arithmetic", "group=5", "group=5 has more than a hundred thousand symbols; use 4 or fewer."),
        ("arithmetic", "room=3", "room=3 does not hold an answer of 4 symbols and its end; use 5."),
        ("star_graph", "nodes=9", "nodes=9 are fewer than the 13 of the largest graph; use 13."),
        ("star_graph", "least=5", "least=5 lies above most=4; use least=4."),
        ("sudoku", "blanks=13", "use 12 or fewer."),
        ("infilling", "symbols=9", "symbols=9 is not a prime from 3 on; use 11."),
        ("infilling", "gap=10", "gap=10 goes round the 11 symbols; use 9 or fewer."),
        ("infilling", "side=1", "side=1 does not tell the step; use 2 or more."),
    ],
)
def test_what_cannot_be_asked_is_refused(name, settings, sentence):
    with pytest.raises(ValueError) as refused:
        tasks.make(name, settings)
    assert str(refused.value).endswith(sentence)


@pytest.mark.parametrize(("statements", "back"), [(4, 1), (6, 3)])
def test_a_trace_is_what_running_the_program_gives(statements, back):
    task = tasks.make("programs", {"statements": statements, "names": 4, "back": back})
    assign, plus, stop, run = range(14, 18)
    far = 0
    for prompt, answer in read(task, task.least_length()):
        values, trace, code = {}, [], prompt
        assert code.pop() == run and code.pop() == task.stop == stop
        for at, statement in enumerate(split(code, stop)):
            name, sign, *terms = statement
            assert sign == assign and 10 <= name < 14
            assert terms[1:2] == ([plus] if at else [])
            far += at > 1 and split(code, stop)[at - 1][0] != terms[0]
            value = (values[terms[0]] + terms[2]) % 10 if at else terms[0]
            values[name] = value
            trace += [value, stop]
        assert trace == answer
    assert (far > 0) == (back > 1)


def split(code, stop):
    """The statements of a program without the last STOP."""
    made = [[]]
    for symbol in code:
        made.append([]) if symbol == stop else made[-1].append(symbol)
    return made
