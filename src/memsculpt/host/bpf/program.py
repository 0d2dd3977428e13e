# SPDX-License-Identifier: Apache-2.0
"""Compiled programs in the kernel: loaded by a short-lived process (libbpf.py), attached, shared and closed here."""

import array
import errno
import json
import mmap
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from memsculpt.errors import Unavailable
from memsculpt.host.bpf import calls, libbpf

PROGRAMS = Path(__file__).parent / "programs"
READ_BYTES = 1 << 20
NO_SIZES: Mapping[str, int] = MappingProxyType({})
# Takes 0.1 s, and some seconds on an emulated processor; the kernel's verifier has bounds of its own.
LOAD_MOST_S = 60.0
ANSWER_BYTES = 128 << 10
DESCRIPTORS_MOST, DESCRIPTOR_BYTES = 64, 4
SAID_BYTES = 64 << 10
PERF_EVENT_IOC_SET_BPF = 0x40042408  # include/uapi/linux/perf_event.h
# Helpers that our programs call and that came late (include/uapi/linux/bpf.h): number, name, first kernel.
LATE_HELPERS = {181: ("bpf_loop", "5.17")}


class Iterator:
    """An attached iterator program: each `read` runs it once over all that it lists."""

    def __init__(self, link: int, name: str, forget: Callable[["Iterator"], None]) -> None:
        self._name, self._forget = name, forget
        self._link: int | None = link

    def read(self) -> bytes:
        """Return what the program wrote. Raises OSError."""
        parts: list[bytes] = []
        with _named(self._name):
            if self._link is None:
                raise _closed()
            number = calls.create_iterator(self._link)
            try:
                while part := _read(number):
                    parts.append(part)
            finally:
                os.close(number)
        return b"".join(parts)

    def close(self) -> None:
        """Detach; the kernel forgets the program when it is closed as well. A second call does nothing."""
        if self._link is not None:
            os.close(self._link)
            self._link = None
            self._forget(self)


class Map:
    """A map of a loaded program: looked up by key, or, where it is an array made for it, shared as memory."""

    def __init__(self, number: int, name: str, key_bytes: int, value_bytes: int, max_entries: int) -> None:
        self.number, self._name = number, name
        self.key_bytes, self.value_bytes, self.max_entries = key_bytes, value_bytes, max_entries

    def memory(self) -> mmap.mmap:
        """Return the values of an array map (BPF_F_MMAPABLE), one behind the other, each a multiple of 8 bytes.

        Raises OSError. The caller closes it.
        """
        if self.number < 0:
            raise _closed()  # mmap(2) without a file would be memory of its own
        size = self.max_entries * (-(-self.value_bytes // 8) * 8)
        return mmap.mmap(self.number, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def get(self, key: bytes) -> bytes | None:
        """Return the value, None where there is none. Raises OSError."""
        with _named(self._name):
            try:
                return calls.lookup(self.number, self._key(key), self.value_bytes)
            except FileNotFoundError:
                return None

    def put(self, key: bytes, value: bytes) -> None:
        """Write the value. Raises OSError (E2BIG where the map is full)."""
        if len(value) != self.value_bytes:
            raise ValueError(f"a value of {self._name} has {self.value_bytes} bytes, not {len(value)}")
        with _named(self._name):
            calls.update(self.number, self._key(key), value)

    def remove(self, key: bytes) -> None:
        """Forget the key; one that is not there is no error. Raises OSError."""
        with _named(self._name), suppress(FileNotFoundError):
            calls.delete(self.number, self._key(key))

    def close(self) -> None:
        """Give the descriptor back; what is asked of it afterwards raises EBADF."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_bytes:
            raise ValueError(f"a key of {self._name} has {self.key_bytes} bytes, not {len(key)}")
        return key


class Program:
    """A compiled object in the kernel. Use it as a context manager, or close it."""

    def __init__(self, path: Path, sizes: Mapping[str, int] = NO_SIZES) -> None:
        """Load; `sizes` gives maps other sizes (`max_entries`) than they were compiled with.

        Raises Unavailable with the kernel's or libbpf's own words.
        """
        self._path = path
        self._iterators: list[Iterator] = []
        self._links: list[int] = []
        if not path.exists():
            raise Unavailable(
                place=f"BPF program {path.name}",
                problem="was not compiled",
                fix="apt install clang libbpf-dev, then tools/setup run",
            )
        answer, descriptors = _loaded(path, sizes)
        if "failed" in answer:
            raise self._refused(answer["failed"], answer["errno"], answer["words"])
        programs: list[str] = answer["programs"]
        maps: dict[str, list[int]] = answer["maps"]
        self._programs = dict(zip(programs, descriptors, strict=False))
        self._maps = {
            name: Map(number, name, *kind)
            for (name, kind), number in zip(maps.items(), descriptors[len(programs) :], strict=True)
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def iterator(self, name: str, pid: int | None = None) -> Iterator:
        """Attach the iterator program of this name, for one process where `pid` is given (kernel 6.1).

        Raises Unavailable.
        """
        with self._told("attached"):
            link = calls.link_iterator(self._program(name), pid)
        self._iterators.append(Iterator(link, name, self._iterators.remove))
        return self._iterators[-1]

    def attach_perf_event(self, name: str, descriptor: int) -> None:
        """Run the program of this name at every sample of a perf event, which is ours to close from here on.

        Raises Unavailable; the descriptor is then still the caller's.
        """
        with self._told("attached"):
            ioctl(descriptor, PERF_EVENT_IOC_SET_BPF, self._program(name))
        self._links.append(descriptor)

    def attach_raw_tracepoint(self, name: str, tracepoint: str) -> None:
        """Run the program of this name at a raw tracepoint. Raises Unavailable."""
        with self._told("attached"):
            self._links.append(calls.open_raw_tracepoint(tracepoint, self._program(name)))

    def map(self, name: str) -> Map:
        """Return the map of this name, which is closed with the program. Raises Unavailable."""
        with self._told("asked for its maps"):
            if name not in self._maps:
                raise OSError(errno.ENOENT, f"no map {name}")
        return self._maps[name]

    def close(self) -> None:
        """Detach and unload everything; a second call does nothing."""
        for iterator in self._iterators[:]:
            iterator.close()
        while self._links:
            os.close(self._links.pop())
        while self._programs:
            os.close(self._programs.popitem()[1])
        for one in self._maps.values():
            one.close()

    def _program(self, name: str) -> int:
        if name not in self._programs:
            raise OSError(errno.ENOENT, f"no program {name}")
        return self._programs[name]

    @contextmanager
    def _told(self, what: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise self._refused(what, error.errno or 0, error.strerror or str(error)) from error

    def _refused(self, what: str, number: int, said: str) -> Unavailable:
        if what == "found":
            return Unavailable(
                place=libbpf.SONAME,
                problem="is not installed",
                fix="apt install libbpf1 (Debian), or your system's libbpf 1.x",
            )
        words, fix = explained(said)
        if number == errno.EPERM:
            # libbpf goes on about limits of memory and CONFIG_BPF_SYSCALL, which are not what is missing.
            words = "the kernel does not allow it to this user"
            fix = "run as root" if os.geteuid() else "give this root CAP_BPF and CAP_PERFMON (a container lacks them)"
        return Unavailable(place=f"BPF program {self._path.name}", problem=f"cannot be {what}: {words}", fix=fix)


def _closed() -> OSError:
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def explained(words: str) -> tuple[str, str]:
    """Return what the kernel's and libbpf's words mean, and what would help. Pure."""
    unknown = re.search(r"(?:invalid|unknown) func \w+#(\d+)", words)
    name, since = LATE_HELPERS.get(int(unknown.group(1)), ("", "")) if unknown else ("", "")
    if name:
        return f"the kernel has no {name}", f"a kernel from {since} on"
    return words, "a kernel from 5.15 on with BTF and BPF iterators"


def _loaded(path: Path, sizes: Mapping[str, int]) -> tuple[dict[str, Any], list[int]]:
    """Return what a loading process answers, and the descriptors that came with it. Raises Unavailable."""
    try:
        content, descriptors, is_cut = _asked(path, sizes)
    except OSError as error:  # no process or no descriptor to be had, or no answer in time
        raise _not_loaded(path, error.strerror or f"no answer in {LOAD_MOST_S:g} s") from error
    answer: dict[str, Any] = json.loads(content)
    if is_cut:
        for number in descriptors:
            os.close(number)
        raise _not_loaded(path, "no descriptors are left to take it over")
    return answer, descriptors


def _asked(path: Path, sizes: Mapping[str, int]) -> tuple[bytes, list[int], bool]:
    """Return the answer, its descriptors, and whether some of those were lost. Raises OSError, Unavailable."""
    # Isolated and without site: it needs nothing but the standard library, and is the sooner done.
    command = [sys.executable, "-I", "-S", libbpf.__file__, str(path), json.dumps(dict(sizes)), str(os.getpid())]
    with ExitStack() as held:
        ours, its = (held.enter_context(one) for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        said = held.enter_context(os.fdopen(os.memfd_create("memsculpt-loader-said"), "rb"))
        loader = subprocess.Popen(
            command,
            stdin=its.fileno(),
            stdout=said,
            stderr=said,
            start_new_session=True,  # Ctrl-C is the agent's
        )
        held.callback(_end, loader)
        its.close()
        ours.settimeout(LOAD_MOST_S)
        content, descriptors, is_cut = _received(ours)
        if not content:
            _end(loader)
            raise _not_loaded(path, _how_it_ended(loader.returncode, os.pread(said.fileno(), SAID_BYTES, 0)))
    return content, descriptors, is_cut


def _received(ours: socket.socket) -> tuple[bytes, list[int], bool]:
    # Not by socket.recv_fds: that of Python 3.11 takes flags and passes none on, so a child would inherit them all.
    room = socket.CMSG_SPACE(DESCRIPTORS_MOST * DESCRIPTOR_BYTES)
    content, beside, flags, _ = ours.recvmsg(ANSWER_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, data in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) // DESCRIPTOR_BYTES * DESCRIPTOR_BYTES])
    return content, numbers.tolist(), bool(flags & socket.MSG_CTRUNC)


def _end(loader: "subprocess.Popen[bytes]") -> None:
    loader.kill()  # it ends by itself; the rule is that nothing is left of it
    loader.wait()


def _how_it_ended(code: int, said: bytes) -> str:
    last = said.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the process that loads it ended with {ended}" + (f": {last}" if last else "")


def _not_loaded(path: Path, problem: str) -> Unavailable:
    return Unavailable(
        place=f"BPF program {path.name}",
        problem=f"cannot be loaded: {problem}",
        fix="look for it in the kernel's log; a slower source serves meanwhile",
    )


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, READ_BYTES)
        except OSError as error:
            if error.errno != errno.EAGAIN:  # a long list, interrupted at a good place
                raise


@contextmanager
def _named(name: str) -> Generator[None]:
    """Have errors tell what they are of."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{name}: {error.strerror}") from error
