# SPDX-License-Identifier: Apache-2.0
"""What every host's clock must do."""

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
