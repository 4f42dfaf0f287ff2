from __future__ import annotations

import signal

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.heads.stopping import Interruption, Patience, Plateau

LOSSES = st.lists(st.floats(0, 3, width=32), min_size=1, max_size=40)


@given(losses=LOSSES, patience=st.integers(1, 6), min_delta=st.sampled_from([0.0, 0.001, 0.25]))
def test_patience_ends_where_lightnings_early_stopping_would(
    losses: list[float], patience: int, min_delta: float
) -> None:
    ours = Patience(patience=patience, min_delta=min_delta)
    reference = pl.callbacks.EarlyStopping("val_loss", patience=patience, min_delta=min_delta)
    for loss in losses:
        stops, _ = reference._evaluate_stopping_criteria(torch.tensor(loss, dtype=torch.float64))
        over = ours.is_over(loss)
        assert over == stops
        if over:
            break


def test_small_steps_add_up_to_progress() -> None:
    patience = Patience(patience=3, min_delta=0.1)
    assert not any(patience.is_over(loss) for loss in [1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76])


@given(losses=LOSSES, patience=st.integers(0, 5), min_delta=st.sampled_from([0.0, 0.001, 0.25]))
def test_rate_falls_on_a_plateau_as_torchs_does(losses: list[float], patience: int, min_delta: float) -> None:
    ours = Plateau(patience=patience, min_delta=min_delta)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience, threshold=min_delta, threshold_mode="abs", eps=0
    )
    for loss in losses:
        ours.step(loss)
        reference.step(loss)
        assert ours.scale == optimizer.param_groups[0]["lr"]


def test_the_first_interrupt_requests_a_stop_and_the_second_aborts() -> None:
    with Interruption() as interruption:
        interruption.has_result = True
        signal.raise_signal(signal.SIGINT)
        assert [interruption.requested, interruption.aborted] == [True, False]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interruption.aborted
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_ends_at_once_where_there_is_nothing_to_keep() -> None:
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not interruption.requested


def test_interruption_entered_again_lasts_until_the_outer_end() -> None:
    with Interruption() as interruption:
        interruption.has_result = True
        with interruption:
            pass
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_signal_handler_is_not_replaced() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
        assert seen == [signal.SIGINT] and not interruption.requested
    finally:
        signal.signal(signal.SIGINT, before)
