# SPDX-License-Identifier: Apache-2.0
"""Cgroups with a memory controller, as a tree: budgets as the kernel's text, charges counted upwards.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst; mm/page_counter.c for the rounding
of what is written (down to whole pages) and for what is printed without a limit.
"""

from collections.abc import Iterator

from memsculpt.domain.plan import LimitKind
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath
from memsculpt.errors import Refused, Transient, Vanished
from memsculpt.host.protocol import LimitValue

PAGE_BYTES = 4096
V1_UNLIMITED_TEXT = str(UNLIMITED_BYTES // PAGE_BYTES * PAGE_BYTES)
V1_UNLIMITED_FROM_BYTES = 1 << 60  # what a v1 file prints above this stands for "no limit"; depends on the page size
FIRST_INODE = 4026


class Node:
    """One cgroup. The counts of chunks include its descendants, as the kernel's page counters do."""

    def __init__(self, *, path: CgroupPath, parent: "Node | None", number: int, texts: dict[str, str]) -> None:
        self.path, self.parent, self.number = path, parent, number
        self.inode = FIRST_INODE + number
        self.is_own = False
        self.children: list[Node] = []
        self.texts = texts  # by file name, as the kernel prints it
        self.sizes_bytes: dict[LimitKind, int] = {}  # what they mean, kept because every charge asks
        self.capacity_bytes: int | None = None  # the root's: what the machine has
        self.lineage: tuple[Node, ...] = (self, *(parent.lineage if parent is not None else ()))
        self.anon_chunks = self.file_chunks = self.swapped_chunks = 0
        self.process_count = 0
        self.limit_hits_count = self.oom_kills_count = 0
        self.minor_faults_count = self.major_faults_count = self.refaults_count = 0
        self.cpu_s = self.some_stall_s = self.full_stall_s = 0.0
        self.read_bytes = self.written_bytes = 0
        self.stuck_s = 0.0  # how long its reclaim has found only pages in use

    @property
    def charged_chunks(self) -> int:
        """Return the chunks in main memory that are charged here or below."""
        return self.anon_chunks + self.file_chunks

    def book(self, *, anon: int = 0, file: int = 0, swapped: int = 0) -> None:
        """Charge (or, below zero, uncharge) chunks here and in every ancestor."""
        for node in self.lineage:
            node.anon_chunks += anon
            node.file_chunks += file
            node.swapped_chunks += swapped


class CgroupTree:
    """All cgroups of a simulated host, in version 1 or 2 of the interface."""

    def __init__(self, *, version: int, capacity_bytes: int) -> None:
        self.version = version
        self._files = (
            {
                LimitKind.GUARANTEE: "memory.soft_limit_in_bytes",
                LimitKind.LIMIT: "memory.limit_in_bytes",
                LimitKind.HARD: "memory.limit_in_bytes",
            }
            if version == 1
            else {
                LimitKind.GUARANTEE: "memory.min",
                LimitKind.LIMIT: "memory.high",
                LimitKind.HARD: "memory.max",
            }
        )
        self.nodes: dict[CgroupPath, Node] = {}
        self.by_number: list[Node] = []  # a removed cgroup's number leads to its nearest living ancestor
        self.root = self._add(CgroupPath(""), None)
        self.root.capacity_bytes = capacity_bytes

    def find(self, path: CgroupPath) -> Node:
        """Return the cgroup; Vanished when there is none."""
        node = self.nodes.get(path)
        if node is None:
            raise Vanished(place=f"cgroup {path!r}")
        return node

    def create(self, path: CgroupPath, *, is_own: bool) -> Node:
        """Make a cgroup and what is missing above it; an existing one is left as it is."""
        if path in self.nodes:
            return self.nodes[path]
        above, _, _ = path.rpartition("/")
        node = self._add(path, self.create(CgroupPath(above), is_own=is_own))
        node.is_own = is_own
        return node

    def remove(self, path: CgroupPath) -> None:
        """Remove an empty cgroup of our own; what is still charged to it goes to its parent.

        Raises Refused for one that is not ours, Transient (EBUSY) while it has processes or children.
        """
        node = self.find(path)
        if not node.is_own or node.parent is None:
            raise Refused(place=f"cgroup {path!r}", problem="was not made by memsculpt", fix="leave it alone")
        if node.process_count or node.children:
            raise Transient(place=f"cgroup {path!r}", problem="is not empty (EBUSY)", retry_in_s=1.0)
        self.forget(node)

    def forget(self, node: Node) -> None:
        """Take an empty cgroup off the tree, whoever made it.

        Charges of an offline cgroup stay in its ancestors' counters (mm/memcontrol.c, reparenting), so that
        nothing has to be booked: only the number must lead to the parent from now on.
        """
        parent = node.parent
        if parent is None:
            raise ValueError("the root cgroup cannot be removed")
        parent.children.remove(node)
        del self.nodes[node.path]
        self.by_number = [parent if other is node else other for other in self.by_number]

    def read(self, path: CgroupPath, kind: LimitKind) -> LimitValue:
        """Read one budget as its file prints it."""
        return self.value_of(self.find(path).texts[self._files[kind]])

    def write(self, path: CgroupPath, kind: LimitKind, text: str) -> LimitValue:
        """Put a text into a budget's file and return what the file prints then; takes no memory from anybody.

        Raises Refused for a text that the kernel would answer with EINVAL, or for the root.
        """
        node = self.find(path)
        if node is self.root:
            raise Refused(place="the root cgroup", problem="has no budgets", fix="name a cgroup below it")
        node.texts[self._files[kind]] = self._printed(text)
        self._understand(node)
        return self.read(path, kind)

    def limit_bytes(self, node: Node, kind: LimitKind) -> int:
        """Return what a budget means in bytes."""
        return node.sizes_bytes[kind]

    def hard_bytes(self, node: Node) -> int:
        """Return what the cgroup may hold at most: its hard limit, or the machine's memory for the root."""
        hard = self.limit_bytes(node, LimitKind.HARD)
        return hard if node.capacity_bytes is None else min(hard, node.capacity_bytes)

    def value_of(self, text: str) -> LimitValue:
        """Parse a budget's text as the kernel prints it."""
        if text.strip() == "max" or int(text) >= V1_UNLIMITED_FROM_BYTES:
            return LimitValue(text=text, size_bytes=UNLIMITED_BYTES)
        return LimitValue(text=text, size_bytes=int(text))

    def text_of(self, size_bytes: int) -> str:
        """Return what is written for a size: v1 takes -1 for "none", v2 "max"."""
        if size_bytes >= V1_UNLIMITED_FROM_BYTES:
            return "-1" if self.version == 1 else "max"
        return str(size_bytes)

    def subtree(self, node: Node) -> Iterator[Node]:
        """Yield the cgroup and everything below it."""
        yield node
        for child in node.children:
            yield from self.subtree(child)

    def _printed(self, text: str) -> str:
        bare = text.strip()
        unlimited = f"{V1_UNLIMITED_TEXT}\n" if self.version == 1 else "max\n"
        if bare == ("-1" if self.version == 1 else "max"):
            return unlimited
        if not (bare.isascii() and bare.isdigit()):
            raise Refused(place="memory budget", problem=f"{text!r} is no size (EINVAL)", fix="write whole bytes")
        whole_bytes = int(bare) // PAGE_BYTES * PAGE_BYTES
        return unlimited if whole_bytes >= int(V1_UNLIMITED_TEXT) else f"{whole_bytes}\n"

    def _understand(self, node: Node) -> None:
        node.sizes_bytes = {kind: self.value_of(node.texts[file]).size_bytes for kind, file in self._files.items()}

    def _add(self, path: CgroupPath, parent: Node | None) -> Node:
        texts = {file: self._printed("-1" if self.version == 1 else "max") for file in self._files.values()}
        if self.version == 2:
            texts["memory.min"] = "0\n"
        node = Node(path=path, parent=parent, number=len(self.by_number), texts=texts)
        self._understand(node)
        self.nodes[path] = node
        self.by_number.append(node)
        if parent is not None:
            parent.children.append(node)
        return node
