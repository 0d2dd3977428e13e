# SPDX-License-Identifier: Apache-2.0
"""Offering a running guest's RAM to KSM, and taking it back: the `merge` property of QEMU's memory backends.

madvise(MADV_MERGEABLE) works on one's own memory only (process_madvise(2) answers EINVAL), so QEMU has to do it. RAM
without an `-object` of its own is a backend as well, named after the machine's RAM ("pc.ram"). What QEMU itself
offered at its start (`-machine mem-merge=on`, its default) besides RAM, firmware and video memory, has no such
property and stays offered: such a VM cannot be kept out. Source: QEMU 7.2, backends/hostmem.c; tried in tests/vm.
"""

from collections.abc import Callable, Sequence

from memsculpt.errors import Refused
from memsculpt.host.linux.guest_ram import MemoryBackend, parse_memdevs
from memsculpt.host.linux.qmp import Answer, Command, CommandError

Ask = Callable[[Sequence[Command]], list[Answer]]


def is_offered(ask: Ask) -> bool:
    """Tell whether any of the guest's RAM is offered. Raises as `ask`."""
    return any(one.is_mergeable for one in _private(ask))


def offer(ask: Ask, *, to_ksm: bool, place: str) -> bool:
    """Offer all private RAM, or none; return whether any is offered now.

    Raises Refused where there is none, or QEMU denies it, and as `ask`.
    """
    backends = _private(ask)
    if not backends:
        raise Refused(
            place=place, problem="has no private memory: KSM cannot merge shared memory", fix="leave out share=on"
        )
    wanted = [one for one in backends if one.is_mergeable != to_ksm]
    set_merge = [
        Command("qom-set", {"path": f"/objects/{one.id}", "property": "merge", "value": to_ksm}) for one in wanted
    ]
    for answer in ask(set_merge) if set_merge else []:
        if isinstance(answer, CommandError):
            raise Refused(
                place=place,
                problem=f"QEMU does not change what is offered to KSM: {answer.words}",
                fix="start it with -machine mem-merge=on (VMs of the group), or mem-merge=off (all others)",
            )
    return is_offered(ask)


def _private(ask: Ask) -> list[MemoryBackend]:
    (told,) = ask([Command("query-memdev")])
    return [one for one in parse_memdevs(told) if not one.is_shared and one.id]
