"""Turns, warming up, and what is kept."""

from minisd.benchmark.timing import interleave, wall


def test_contestants_take_turns_and_the_first_round_does_not_count():
    order, lines = [], []
    made = {name: (lambda name=name: order.append(name) or name.upper()) for name in "ab"}
    seconds, results = interleave(made, 2, clock=lambda call: (len(order) + 1.0, call()), say=lines.append)
    assert order == list("ababab") and results == {"a": "A", "b": "B"}
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]} and len(lines) == 6 and "round 0" in lines[0]
    seconds, _ = interleave(made, 1, warm=False, clock=lambda call: (0.123456, call()))
    assert seconds == {"a": [0.1235], "b": [0.1235]}


def test_the_clock():
    seconds, result = wall(lambda: 7)
    assert 0 <= seconds < 1 and result == 7
