# SPDX-License-Identifier: Apache-2.0
"""Which versions stay: all that are young, then fewer the older they are. Pure."""

from collections.abc import Sequence

# Older than the first, one stays of each stretch of the second; past the last, none but the newest of all.
STEPS_S: tuple[tuple[int, int], ...] = (
    (3600, 3600),  # of the last hour all, then one an hour
    (86_400, 86_400),  # for a day, then one a day
    (30 * 86_400, 7 * 86_400),  # for a month, then one a week
)
LONGEST_S = 366 * 86_400


def versions_to_keep(made_s: Sequence[int], now_s: int) -> list[bool]:
    """Tell for each version, oldest first, whether it stays.

    The newest always stays, whatever its age. Of each hour, day or week (of the Unix clock) that is thinned, the
    newest version stays. Thinning again at the same or a later time never brings a version back, and takes none that
    a single late thinning would have kept.
    """
    keeps = [False] * len(made_s)
    newer: set[tuple[int, int]] = set()  # stretches that have a newer version, of whatever age
    for number in range(len(made_s) - 1, -1, -1):
        age_s = now_s - made_s[number]
        stretch_s = next((stretch for older, stretch in reversed(STEPS_S) if age_s > older), 0)
        if age_s <= LONGEST_S:
            keeps[number] = stretch_s == 0 or (stretch_s, made_s[number] // stretch_s) not in newer
        newer.update((stretch, made_s[number] // stretch) for _, stretch in STEPS_S)
    if keeps:
        keeps[-1] = True
    return keeps
