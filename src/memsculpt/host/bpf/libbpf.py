# SPDX-License-Identifier: Apache-2.0
"""libbpf 1.x by ctypes, as far as we use it (libbpf.readthedocs.io): open, load, attach, share maps, close.

libbpf says why a program was refused on a channel of its own, not in errno: what it says is kept for the error.
"""

import ctypes
import errno
import functools
import mmap
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from memsculpt.errors import Unavailable

SONAME = "libbpf.so.1"
READ_BYTES = 1 << 20
LINES_KEPT = 12
# The verifier's log comes as one line, and says at its end what it refuses.
LINE_BYTES = 1 << 20
NO_SIZES: Mapping[str, int] = MappingProxyType({})
WARN = 0  # enum libbpf_print_level
# Helpers that our programs call and that came late (include/uapi/linux/bpf.h): number, name, first kernel.
LATE_HELPERS = {181: ("bpf_loop", "5.17")}

_Print = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_file": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_void_p]),
    "bpf_object__load": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_object__close": (None, [ctypes.c_void_p]),
    "bpf_object__find_program_by_name": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "bpf_program__attach_iter": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]),
    "bpf_program__attach": (ctypes.c_void_p, [ctypes.c_void_p]),
    "bpf_program__attach_perf_event": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
    "bpf_object__find_map_by_name": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "bpf_map__fd": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_map__key_size": (ctypes.c_uint32, [ctypes.c_void_p]),
    "bpf_map__value_size": (ctypes.c_uint32, [ctypes.c_void_p]),
    "bpf_map__max_entries": (ctypes.c_uint32, [ctypes.c_void_p]),
    "bpf_map__set_max_entries": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint32]),
    "bpf_map_lookup_elem": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]),
    "bpf_map_update_elem": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]),
    "bpf_map_delete_elem": (ctypes.c_int, [ctypes.c_int, ctypes.c_void_p]),
    "bpf_link__fd": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_link__destroy": (ctypes.c_int, [ctypes.c_void_p]),
    "bpf_iter_create": (ctypes.c_int, [ctypes.c_int]),
}


class _Library:
    """The library, and what it said last."""

    def __init__(self) -> None:
        self.calls = ctypes.CDLL(SONAME, use_errno=True)
        self._libc = ctypes.CDLL(None)
        self.said: deque[str] = deque(maxlen=LINES_KEPT)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.calls, name)
            function.restype, function.argtypes = result, arguments
        self._keep = _Print(self._hear)  # ctypes keeps no reference of its own
        self.calls.libbpf_set_print.restype = ctypes.c_void_p
        self.calls.libbpf_set_print(self._keep)

    def _hear(self, level: int, form: bytes, arguments: int) -> int:
        if level == WARN:
            line = ctypes.create_string_buffer(LINE_BYTES)
            self._libc.vsnprintf(line, ctypes.c_size_t(LINE_BYTES), form, ctypes.c_void_p(arguments))
            self.said.extend(line.value.decode("utf-8", "replace").splitlines())
        return 0


@functools.cache
def _library() -> _Library:
    try:
        return _Library()
    except OSError as error:
        raise Unavailable(
            place=SONAME, problem="is not installed", fix="apt install libbpf1 (Debian), or your system's libbpf 1.x"
        ) from error


class Iterator:
    """An attached iterator program: each `read` runs it once over all that it lists."""

    def __init__(self, library: _Library, link: int, name: str, forget: Callable[["Iterator"], None]) -> None:
        self._library, self._name, self._forget = library, name, forget
        self._link: int | None = link

    def read(self) -> bytes:
        """Return what the program wrote. Raises OSError."""
        number = self._library.calls.bpf_iter_create(self._library.calls.bpf_link__fd(self._link))
        if number < 0:
            raise OSError(-number, f"{self._name}: {os.strerror(-number)}")
        parts: list[bytes] = []
        try:
            while part := _read(number):
                parts.append(part)
        finally:
            os.close(number)
        return b"".join(parts)

    def close(self) -> None:
        """Detach; the kernel forgets the program with the object. A second call does nothing."""
        if self._link is not None:
            self._library.calls.bpf_link__destroy(self._link)
            self._link = None
            self._forget(self)


class Map:
    """A map of a loaded program: looked up by key, or, where it is an array made for it, shared as memory."""

    def __init__(self, library: _Library, handle: int, name: str) -> None:
        self._library, self._name = library, name
        self.number: int = library.calls.bpf_map__fd(handle)
        self.key_bytes: int = library.calls.bpf_map__key_size(handle)
        self.value_bytes: int = library.calls.bpf_map__value_size(handle)
        self.max_entries: int = library.calls.bpf_map__max_entries(handle)

    def memory(self) -> mmap.mmap:
        """Return the values of an array map (BPF_F_MMAPABLE), one behind the other, each a multiple of 8 bytes.

        Raises OSError. The caller closes it.
        """
        size = self.max_entries * (-(-self.value_bytes // 8) * 8)
        return mmap.mmap(self.number, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def get(self, key: bytes) -> bytes | None:
        """Return the value, None where there is none. Raises OSError."""
        value = ctypes.create_string_buffer(self.value_bytes)
        failed = self._library.calls.bpf_map_lookup_elem(self.number, self._key(key), value)
        return None if failed == -errno.ENOENT else self._checked(failed, value.raw)

    def put(self, key: bytes, value: bytes) -> None:
        """Write the value. Raises OSError (E2BIG where the map is full)."""
        if len(value) != self.value_bytes:
            raise ValueError(f"a value of {self._name} has {self.value_bytes} bytes, not {len(value)}")
        self._checked(self._library.calls.bpf_map_update_elem(self.number, self._key(key), value, 0), b"")

    def remove(self, key: bytes) -> None:
        """Forget the key; one that is not there is no error. Raises OSError."""
        failed = self._library.calls.bpf_map_delete_elem(self.number, self._key(key))
        self._checked(0 if failed == -errno.ENOENT else failed, b"")

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_bytes:
            raise ValueError(f"a key of {self._name} has {self.key_bytes} bytes, not {len(key)}")
        return key

    def _checked(self, failed: int, value: bytes) -> bytes:
        if failed:
            raise OSError(-failed, f"{self._name}: {os.strerror(-failed)}")
        return value


class _IteratorTarget(ctypes.Structure):
    """union bpf_iter_link_info, as far as iter/task reads it: one process (since 6.1)."""

    _fields_ = (
        ("thread", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("pidfd", ctypes.c_uint32),
        ("_", ctypes.c_uint32),
    )


class _IteratorOptions(ctypes.Structure):
    """struct bpf_iter_attach_opts."""

    _fields_ = (("size", ctypes.c_size_t), ("target", ctypes.c_void_p), ("target_bytes", ctypes.c_uint32))


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, READ_BYTES)
        except OSError as error:
            if error.errno != errno.EAGAIN:  # a long list, interrupted at a good place
                raise


def explained(words: str) -> tuple[str, str]:
    """Return what the kernel's and libbpf's words mean, and what would help. Pure."""
    unknown = re.search(r"(?:invalid|unknown) func \w+#(\d+)", words)
    name, since = LATE_HELPERS.get(int(unknown.group(1)), ("", "")) if unknown else ("", "")
    if name:
        return f"the kernel has no {name}", f"a kernel from {since} on"
    return words, "a kernel from 5.15 on with BTF and BPF iterators"


class Program:
    """A compiled object in the kernel. Use it as a context manager, or close it."""

    def __init__(self, path: Path, sizes: Mapping[str, int] = NO_SIZES) -> None:
        """Load; `sizes` gives maps other sizes (`max_entries`) than they were compiled with.

        Raises Unavailable with the kernel's or libbpf's own words.
        """
        self._library = _library()
        self._path = path
        self._object: int | None = None
        self._iterators: list[Iterator] = []
        self._links: list[int] = []
        with self._told("opened"):
            self._object = self._library.calls.bpf_object__open_file(os.fsencode(path), None)
            if not self._object:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            with self._told("loaded"):
                for name, size in sizes.items():
                    found = self._library.calls.bpf_object__find_map_by_name(self._object, name.encode("ascii"))
                    failed = self._library.calls.bpf_map__set_max_entries(found, size) if found else -errno.ENOENT
                    if failed:
                        raise OSError(-failed, f"map {name}: {os.strerror(-failed)}")
                failed = self._library.calls.bpf_object__load(self._object)
                if failed:
                    raise OSError(-failed, os.strerror(-failed))
        except Unavailable:
            self.close()
            raise

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
        options = None
        if pid is not None:
            target = _IteratorTarget(pid=pid)
            options = ctypes.byref(
                _IteratorOptions(ctypes.sizeof(_IteratorOptions), ctypes.addressof(target), ctypes.sizeof(target))
            )
        with self._told("attached"):
            program = self._library.calls.bpf_object__find_program_by_name(self._object, name.encode("ascii"))
            link = self._library.calls.bpf_program__attach_iter(program, options) if program else None
            if not link:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._iterators.append(Iterator(self._library, link, name, self._iterators.remove))
        return self._iterators[-1]

    def attach_perf_event(self, name: str, descriptor: int) -> None:
        """Run the program of this name at every sample of a perf event, which is libbpf's to close from here on.

        Raises Unavailable; the descriptor is then still the caller's.
        """
        with self._told("attached"):
            program = self._library.calls.bpf_object__find_program_by_name(self._object, name.encode("ascii"))
            link = self._library.calls.bpf_program__attach_perf_event(program, descriptor) if program else None
            if not link:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._links.append(link)

    def attach(self, name: str) -> None:
        """Attach the program of this name where its section says. Raises Unavailable."""
        with self._told("attached"):
            program = self._library.calls.bpf_object__find_program_by_name(self._object, name.encode("ascii"))
            link = self._library.calls.bpf_program__attach(program) if program else None
            if not link:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._links.append(link)

    def map(self, name: str) -> Map:
        """Return the map of this name. Raises Unavailable."""
        with self._told("asked for its maps"):
            found = self._library.calls.bpf_object__find_map_by_name(self._object, name.encode("ascii"))
            if not found:
                raise OSError(errno.ENOENT, f"no map {name}")
        return Map(self._library, found, name)

    def close(self) -> None:
        """Detach and unload everything; a second call does nothing."""
        for iterator in self._iterators[:]:
            iterator.close()
        for link in self._links:
            self._library.calls.bpf_link__destroy(link)
        self._links.clear()
        if self._object is not None:
            self._library.calls.bpf_object__close(self._object)
            self._object = None

    @contextmanager
    def _told(self, what: str) -> Generator[None]:
        self._library.said.clear()
        try:
            yield
        except OSError as error:
            words, fix = explained("; ".join(self._library.said) or error.strerror or str(error))
            if error.errno == errno.EPERM:
                # libbpf goes on about limits of memory and CONFIG_BPF_SYSCALL, which are not what is missing.
                words = "the kernel does not allow it to this user"
                fix = (
                    "run as root" if os.geteuid() else "give this root CAP_BPF and CAP_PERFMON (a container lacks them)"
                )
            raise Unavailable(
                place=f"BPF program {self._path.name}", problem=f"cannot be {what}: {words}", fix=fix
            ) from error
