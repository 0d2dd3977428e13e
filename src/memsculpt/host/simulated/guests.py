# SPDX-License-Identifier: Apache-2.0
"""Virtual machines as programs of the simulated host: a guest's memory from within, and what the host sees of it.

The guest's own kernel is a few numbers: what its programs want (a function of time), page cache that fills what they
leave, swap for what does not fit beside the balloon, and the balloon on its way to what it was asked for. The host sees
one process whose memory is what the guest has touched, less what the balloon took or the guest reported free.

Paces are those of the reference machine (QEMU's emulator, 512 MiB guest): 256 MiB inflated in 0.6 to 0.9 s, deflated in
0.11 to 0.15 s. Left out, knowingly: that a balloon breaks huge pages, and virtual processors that compete.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from memsculpt.domain.vm import Backing, GuestMemory, VmFeatures, VmState, guest_memory
from memsculpt.host.simulated.workloads import MIB, Demand, Program

PAGE_BYTES = 4096
NOT_TOLD = (1 << 64) - 1  # virtio's -1
RESERVED_RATIO = 1 / 16  # of the RAM: the guest kernel's own, outside of its MemTotal


class Word(Enum):
    """What a guest's statistics are worth."""

    HONEST = "honest"
    NOT_TOLD = "not told"  # every figure is -1
    ZERO = "zero"
    JUMPS = "jumps"  # from one lie to the next


class Driver(Enum):
    """What the guest does when its balloon is asked."""

    WILLING = "willing"
    ABSENT = "absent"  # no driver: the request is refused, and there are no statistics
    DEAF = "deaf"  # it takes the request and does nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine(Program):
    """A guest. `name` is the VM's; `demand` is what its programs want, in bytes, by seconds since it began."""

    ram_bytes: int
    demand: Callable[[float], int]
    uuid: str = ""  # "": made from the name
    touch_hz: float = 1.0  # how often its programs touch each part of what they hold
    cpu_ratio: float = 0.3
    cache_bytes: int = 0  # files that it reads: as much page cache as there is room for
    cache_bytes_per_s: float = 64.0 * MIB
    swap_bytes: int = 0  # of the guest's own
    swap_bytes_per_s: float = 200.0 * MIB
    inflate_bytes_per_s: float = 350.0 * MIB
    deflate_bytes_per_s: float = 2048.0 * MIB
    features: VmFeatures = VmFeatures(balloon=True)  # noqa: RUF009  frozen: one is as good as another
    stats_interval_s: float = 1.0
    word: Word = Word.HONEST
    driver: Driver = Driver.WILLING
    backing: Backing = Backing.PRIVATE

    @property
    def exe(self) -> str:
        """Return the path of its executable."""
        return "/usr/bin/qemu-system-x86_64"

    @property
    def vm(self) -> str:
        """Return the VM's name."""
        return self.name

    @property
    def vm_uuid(self) -> str:
        """Return the VM's UUID."""
        return self.uuid or str(uuid5(NAMESPACE_URL, f"vm:{self.name}"))

    def start(self, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> "Guest":
        """Boot."""
        return Guest(self, now_s, chunk_bytes, rng)


class Guest:
    """One life of a VM, from its boot until its end."""

    file_chunks = 0

    def __init__(self, machine: VirtualMachine, now_s: float, chunk_bytes: int, rng: np.random.Generator) -> None:
        self.machine = machine
        self.state = VmState.RUNNING
        self.is_dead = False  # it was asked for too much: its kernel has panicked
        self.balloon_bytes = self.target_bytes = machine.ram_bytes  # what the balloon leaves
        self.wanted_bytes = self.swapped_bytes = self.cache_bytes = 0
        self.swapped_in_bytes = self.swapped_out_bytes = 0
        self.run_s = 0.0  # that its virtual processors have run
        self._began_at_s = now_s
        self._chunk_bytes, self._rng = chunk_bytes, rng
        self._touched_bytes = 0  # what it has ever used and the balloon did not take: the host keeps it
        self._told_at_s = float("-inf")
        self._told: Mapping[str, int] = {}

    @property
    def own_bytes(self) -> int:
        """Return what the guest's kernel keeps for itself."""
        return round(self.machine.ram_bytes * RESERVED_RATIO)

    @property
    def used_bytes(self) -> int:
        """Return what its programs have in memory, that is without what is swapped."""
        return self.wanted_bytes - self.swapped_bytes

    def ask_balloon(self, size_bytes: int) -> None:
        """Have the balloon leave the guest `size_bytes`, in time."""
        if self.machine.driver is Driver.WILLING:
            self.target_bytes = min(size_bytes, self.machine.ram_bytes)

    def demand(self, now_s: float, step_s: float) -> Demand | None:
        """Live until `now_s + step_s`; the process then holds what the guest has touched."""
        if self.state is not VmState.RUNNING or self.is_dead:
            return None
        self._move_balloon(step_s)
        slowed = self._live(now_s + step_s, step_s)
        if self.is_dead:
            return None
        if now_s + step_s - self._told_at_s >= self.machine.stats_interval_s:
            self._told_at_s, self._told = now_s + step_s, self._figures(now_s)
        in_use = self.own_bytes + self.used_bytes
        held = in_use + self.cache_bytes
        kept = held if self.machine.features.free_page_reporting else max(held, self._touched_bytes)
        self._touched_bytes = min(kept, self.balloon_bytes)
        run_s = step_s / (1.0 + slowed)
        self.run_s += run_s * self.machine.cpu_ratio
        size = -(-self._touched_bytes // self._chunk_bytes)
        chance = 1.0 - np.exp(-self.machine.touch_hz * run_s)
        hot = self._rng.random(min(size, -(-in_use // self._chunk_bytes))) < chance
        return Demand(run_s, size, np.flatnonzero(hot), self.machine.cpu_ratio)

    def progress(self, done_ratio: float) -> None:
        return None

    def statistics(self) -> GuestMemory | None:
        """Return what the guest told last; None where it never has."""
        if not self._told or self.machine.driver is Driver.ABSENT or not self.machine.features.balloon:
            return None
        return guest_memory(self._told, ram_bytes=self.machine.ram_bytes, updated_at_s=self._told_at_s)

    # ---- inside

    def _move_balloon(self, step_s: float) -> None:
        down = round(self.machine.inflate_bytes_per_s * step_s)
        up = round(self.machine.deflate_bytes_per_s * step_s)
        if self.target_bytes < self.balloon_bytes:
            self.balloon_bytes = max(self.target_bytes, self.balloon_bytes - down)
        else:
            self.balloon_bytes = min(self.target_bytes, self.balloon_bytes + up)

    def _live(self, now_s: float, step_s: float) -> float:
        """Let the guest's programs run for a step; return by which part of its time swapping slows them."""
        machine, most = self.machine, self.machine.ram_bytes - self.own_bytes + self.machine.swap_bytes
        self.wanted_bytes = min(max(0, machine.demand(now_s - self._began_at_s)), most)
        self.swapped_bytes = min(self.swapped_bytes, self.wanted_bytes)
        lacking = self.own_bytes + self.wanted_bytes - self.balloon_bytes - machine.swap_bytes
        if lacking > 0:
            if not machine.features.deflate_on_oom:
                self.is_dead = True
                return 0.0
            self.balloon_bytes += lacking
        room = self.balloon_bytes - self.own_bytes
        must_swap = max(0, self.wanted_bytes - room)
        moved = 0
        if must_swap > self.swapped_bytes:
            moved = must_swap - self.swapped_bytes
            self.swapped_out_bytes += moved
            self.swapped_bytes = must_swap
        touched = round(self.swapped_bytes * min(1.0, machine.touch_hz * step_s))
        touched = min(touched, round(machine.swap_bytes_per_s * step_s))
        stays = min(touched, self.swapped_bytes - must_swap)
        self.swapped_in_bytes += touched
        self.swapped_out_bytes += touched - stays
        self.swapped_bytes -= stays
        read = round(machine.cache_bytes_per_s * step_s)
        self.cache_bytes = max(0, min(machine.cache_bytes, self.cache_bytes + read, room - self.used_bytes))
        return (moved + 2 * touched - stays) / machine.swap_bytes_per_s / step_s

    def _figures(self, now_s: float) -> Mapping[str, int]:
        """Return the statistics as the balloon's driver sends them, or what a liar sends instead."""
        # With deflate-on-oom the guest's MemTotal keeps what the balloon took, and tells it as used.
        base = self.machine.ram_bytes if self.machine.features.deflate_on_oom else self.balloon_bytes
        free = self.balloon_bytes - self.own_bytes - self.used_bytes - self.cache_bytes
        honest = {
            "stat-total-memory": base - self.own_bytes,
            "stat-free-memory": free,
            "stat-available-memory": free + self.cache_bytes,
            "stat-disk-caches": self.cache_bytes,
            "stat-swap-in": self.swapped_in_bytes,
            "stat-swap-out": self.swapped_out_bytes,
            "stat-major-faults": self.swapped_in_bytes // PAGE_BYTES,
            "stat-minor-faults": self._touched_bytes // PAGE_BYTES,
        }
        if self.machine.word is Word.HONEST:
            return honest
        if self.machine.word is Word.JUMPS:
            lies = self._rng.integers(0, 2 * self.machine.ram_bytes, len(honest)).tolist()
            return dict(zip(honest, lies, strict=True))
        return dict.fromkeys(honest, 0 if self.machine.word is Word.ZERO else NOT_TOLD)
