"""What ends a study: signals, the first of which lets its runs save."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.sweep.interrupt import SIGNALS, Stopper


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_a_study_and_a_second_one_interrupts_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stopper = Stopper("study")
    with stopper.after(0):
        os.kill(os.getpid(), number)
        assert stopper.stopping
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
