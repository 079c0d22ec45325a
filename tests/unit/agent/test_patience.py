"""When looking for the other side's word pays, and when sleeping at once does."""

from __future__ import annotations

from vedette.agent.adapters.inference.ring import Patience


def _looks(patience: Patience, words: int, *, came: bool) -> int:
    """Return at how many of so many words it looked, with that result."""
    looks = 0
    for _ in range(words):
        if patience.pays():
            looks += 1
            patience.tell(came=came)
    return looks


def test_words_that_come_are_looked_for_each_time() -> None:
    assert _looks(Patience(100), 50, came=True) == 50


def test_words_that_do_not_come_are_looked_for_less_and_less() -> None:
    patience = Patience(100)
    assert [_looks(patience, words, came=False) for words in (1, 2, 4, 8)] == [1, 1, 1, 1]
    _looks(patience, 2000, came=False)
    assert _looks(patience, 2560, came=False) == 10  # one of 256, however long in vain


def test_a_word_that_came_makes_it_look_again_each_time() -> None:
    patience = Patience(100)
    _looks(patience, 600, came=False)
    while not patience.pays():
        pass
    patience.tell(came=True)
    assert _looks(patience, 20, came=True) == 20


def test_a_time_of_nothing_never_pays() -> None:
    assert _looks(Patience(0), 20, came=True) == 0
