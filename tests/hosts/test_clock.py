# SPDX-License-Identifier: Apache-2.0
"""What every host's clock must do."""

import threading

from tests.hosts.stages import Stage, offers


@offers()
def test_waiting_reaches_the_deadline(stage: Stage):
    """Without pressure a wait ends at its deadline, and time never goes back."""
    begun_s = stage.host.now_s()
    woken = stage.host.wait_until(begun_s + 0.2)

    assert woken is False
    assert stage.host.now_s() >= begun_s + 0.2


@offers()
def test_a_deadline_in_the_past_returns_at_once(stage: Stage):
    """Waiting for what has passed costs nothing."""
    begun_s = stage.host.now_s()

    assert stage.host.wait_until(begun_s - 5.0) is False
    assert stage.host.now_s() - begun_s < 0.1


@offers()
def test_waking_ends_a_wait(stage: Stage):
    """`wake`, called from another thread, ends a wait long before its deadline."""
    begun_s = stage.host.now_s()
    caller = threading.Thread(target=stage.host.wake)
    caller.start()
    woken = stage.host.wait_until(begun_s + 8.0)
    caller.join()

    assert woken is True
    assert stage.host.now_s() - begun_s < 4.0
