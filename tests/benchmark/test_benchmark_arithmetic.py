"""Speed-ups and break-even from round numbers, and properties that hold for any numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import FULL, SAMPLE, make_options, result, way

from featcache.benchmark.result import (
    COLD,
    NOTEBOOK,
    TUNED,
    WARM,
    Cost,
    break_even_epochs,
    cost,
    formula_speed_up,
    summarise,
)

SECONDS = st.floats(min_value=1e-3, max_value=1e6)
COUNTS = st.integers(min_value=1, max_value=1000)


def a_cost(setup_s: float, epoch_s: float, rest_s: float = 0.0) -> Cost:
    return Cost(setup_s=setup_s, epoch_s=epoch_s, rest_s=rest_s, scaled=False)


# --- what was measured on a sample is scaled by images -----------------------------------------------------


def test_end_to_end_is_scaled_by_the_images_of_an_epoch() -> None:
    found = cost(result(), NOTEBOOK)
    # A tenth of train and val took 20 s, a tenth of test 10 s.
    assert (found.setup_s, found.epoch_s, found.rest_s, found.scaled) == (2.0, 200.0, 100.0, True)
    assert summarise(result()).totals[NOTEBOOK].images_per_s == pytest.approx(5.0)


def test_what_saw_all_images_for_all_epochs_is_not_scaled() -> None:
    whole = way(NOTEBOOK, images=FULL, epoch_s=(200.0,) * 10)
    found = cost(result(make_options(sample=None, sample_epochs=None), notebook=whole), NOTEBOOK)
    assert (found.epoch_s, found.scaled) == (200.0, False)
    fewer_epochs = replace(whole, epoch_s=(200.0,) * 9)
    assert cost(result(notebook=fewer_epochs), NOTEBOOK).scaled


@pytest.mark.parametrize("name", [COLD, WARM])
def test_what_a_cached_head_takes_besides_its_epochs_counts(name: str) -> None:
    assert cost(result(), name).rest_s == 2.0


# --- what follows ------------------------------------------------------------------------------------------


def test_speed_ups_of_round_numbers() -> None:
    gains = summarise(result()).comparisons
    notebook, tuned = gains[NOTEBOOK], gains[TUNED]
    assert (notebook.warm_epoch, tuned.warm_epoch) == (200.0, 100.0)
    assert notebook.cold_one_head == pytest.approx((2 + 10 * 200 + 100) / 162)
    assert notebook.cold_all_heads == pytest.approx((2 + 4 * (10 * 200 + 100)) / 198)
    assert notebook.warm_one_head == pytest.approx((2 + 10 * 200 + 100) / 12)
    assert notebook.predicted == pytest.approx(40 * 200 / (200 + 40 * 1))
    # 150 s of extraction and 2 s, against 2 s and 100 s of testing: 50 s behind, and 199 s gained per epoch.
    costs = {name: cost(result(), name) for name in (NOTEBOOK, TUNED, COLD)}
    assert break_even_epochs(costs[NOTEBOOK], costs[COLD]) == pytest.approx(50 / 199)
    assert notebook.break_even_epoch == 1
    assert break_even_epochs(costs[TUNED], costs[COLD]) == pytest.approx((152 - 52) / 99)
    assert tuned.break_even_epoch == 2


def test_heads_after_the_first_cost_no_extraction() -> None:
    totals = summarise(result()).totals
    assert totals[COLD].all_heads_s == 198.0
    assert totals[WARM].all_heads_s == 48.0
    assert totals[WARM].one_head_s == 12.0
    assert totals[NOTEBOOK].all_heads_s == 2 + 4 * 2100
    assert [totals[name].multiplied for name in (NOTEBOOK, COLD, WARM)] == [True, False, False]


def test_one_head_is_not_multiplied() -> None:
    one = summarise(result(make_options(heads=1), cold=way(COLD, setup_s=150.0, heads_s=((1, 162.0),))))
    assert not one.totals[NOTEBOOK].multiplied
    assert one.comparisons[NOTEBOOK].cold_all_heads == one.comparisons[NOTEBOOK].cold_one_head


def test_a_cache_that_never_pays_has_no_break_even() -> None:
    quick = way(NOTEBOOK, images=SAMPLE, epoch_s=(0.01, 0.01))
    gain = summarise(result(notebook=quick)).comparisons[NOTEBOOK]
    assert gain.break_even_epoch is None


# --- for any numbers ---------------------------------------------------------------------------------------


@given(epochs=COUNTS, heads=COUNTS, forward=SECONDS, head=SECONDS)
def test_a_predicted_speed_up_is_below_trainings_and_below_the_warm_one(
    epochs: int, heads: int, forward: float, head: float
) -> None:
    predicted = formula_speed_up(epochs=epochs, heads=heads, forward_s=forward, head_s=head)
    assert 0 < predicted <= min(epochs * heads, forward / head) * (1 + 1e-9)
    more = formula_speed_up(epochs=epochs, heads=heads + 1, forward_s=forward, head_s=head)
    assert more >= predicted * (1 - 1e-9)


@given(setup=SECONDS, extraction=SECONDS, epoch=SECONDS, cached=SECONDS, rest=SECONDS)
def test_at_break_even_both_have_taken_the_same_time(
    setup: float, extraction: float, epoch: float, cached: float, rest: float
) -> None:
    baseline, cold = a_cost(setup, epoch), a_cost(extraction, cached, rest)
    crossing = break_even_epochs(baseline, cold)
    if crossing is None:
        assert cached >= epoch
    else:
        assert baseline.seconds(crossing) == pytest.approx(cold.seconds(crossing), rel=1e-3, abs=1e-3 + abs(crossing))
        assert baseline.seconds(crossing + 1) > cold.seconds(crossing + 1) - 1e-3 * abs(cold.seconds(crossing + 1))
