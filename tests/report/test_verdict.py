"""Verdicts on pairs of methods."""

from __future__ import annotations

import pytest
from scipy import stats

from attn.report.verdict import compare_all, holm, paired


def test_the_paired_test_is_scipys() -> None:
    first, second = [93.1, 92.7, 94.0, 93.3], [92.0, 92.8, 92.9, 92.1]
    p, interval = paired([a - b for a, b in zip(first, second, strict=True)])
    expected = stats.ttest_rel(first, second)
    assert p == pytest.approx(expected.pvalue)
    assert interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_equal_differences_have_no_spread() -> None:
    assert paired([0.0, 0.0, 0.0]) == (1.0, (0.0, 0.0))
    assert paired([0.5, 0.5, 0.5]) == (0.0, (0.5, 0.5))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_seeds_are_paired_and_pairs_are_counted() -> None:
    """The same spread of the scores, but seed by seed the second is always better by nearly the same."""
    plain = {0: 90.0, 1: 92.0, 2: 94.0}
    better = {0: 91.0, 1: 93.1, 2: 95.1, 9: 10.0}
    alike = {0: 92.0, 1: 91.5, 2: 94.5}
    alone = {0: 99.0, 1: 98.0}
    elsewhere = {0: 50.0, 1: 50.0, 2: 50.0}
    found = compare_all([plain, better, alike, alone, elsewhere], [[0, 1, 2, 3], [4]])
    assert len(found) == 6
    by_pair = {(c.first, c.second): c for c in found}
    assert by_pair[0, 1].told == "worse"
    assert by_pair[0, 1].better == 1
    assert by_pair[0, 1].seeds == (0, 1, 2)
    assert by_pair[0, 1].difference == pytest.approx(-3.2 / 3)
    assert by_pair[0, 2].told == "cannot be told apart"
    assert by_pair[0, 2].better is None
    assert by_pair[0, 3].told == "too few seeds (2 common seeds, 3 are needed)"
    assert by_pair[0, 3].difference == pytest.approx(-7.5)
    p = by_pair[0, 1].p
    assert p is not None
    assert by_pair[0, 1].adjusted == pytest.approx(3 * p)  # the smallest of three


def test_a_difference_that_one_pair_shows_may_not_survive_many_pairs() -> None:
    scores = [{0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 2.3, 2: 1.8}]
    (alone,) = compare_all(scores, [[0, 1]])
    assert alone.better == 1
    others = [{seed: value + 0.1 * number * (-1) ** seed for seed, value in scores[0].items()} for number in range(1, 9)]
    among = compare_all([*scores, *others], [list(range(10))])
    assert next(c for c in among if (c.first, c.second) == (0, 1)).told == "cannot be told apart"
