# SPDX-License-Identifier: Apache-2.0
"""KSM, the kernel's merging of identical pages: /sys/kernel/mm/ksm, and who has offered memory to it.

Documentation/admin-guide/mm/ksm.rst. Who offers is told by /proc/PID/ksm_stat (`ksm_mergeable`, `ksm_merge_any`);
older kernels tell it only in smaps, by a walk through all page tables of the machine, which is no way to keep watch:
there sharing is not to be had.
"""

import os

from memsculpt.domain.arrays import Int64
from memsculpt.domain.sharing import SHARED_MOST, Merging, Offerer, PageContents
from memsculpt.domain.workload import Instance
from memsculpt.errors import Refused, Unavailable, Vanished
from memsculpt.host.linux import contents, meminfo, procfs, runs
from memsculpt.host.linux.errnos import is_gone, translate
from memsculpt.host.linux.opened import OpenedProcess

KSM = "/sys/kernel/mm/ksm"
PROC = "/proc"
# What may be changed; everything else there is read only, or means that merged pages exist in a shape of their own.
KNOBS = frozenset({"run", "pages_to_scan", "sleep_millisecs", "smart_scan", "advisor_mode"})
NS_PER_S = 1e9


class Ksm:
    """Fulfils host.protocol.Merger."""

    def __init__(self, ksm: str = KSM, proc: str = PROC) -> None:
        self._ksm, self._proc = ksm, proc
        self._ksmd_pid: int | None = None

    def merging(self) -> Merging:
        """Return what KSM does now; see the protocol."""
        count = self._count
        return Merging(
            run=count("run"),
            shared_pages=count("pages_shared"),
            sharing_pages=count("pages_sharing"),
            zero_pages=max(0, count("ksm_zero_pages", 0)),
            scanned_pages=count("pages_scanned", 0),
            full_scans=count("full_scans"),
            cpu_s=self._ksmd_cpu_s(),
            pages_to_scan=count("pages_to_scan"),
            sleep_ms=count("sleep_millisecs"),
            most_sharing=count("max_page_sharing", SHARED_MOST),
            uses_zero_pages=count("use_zero_pages", 0) == 1,
            advisor=parse_choice(self._read("advisor_mode")) if self._has("advisor_mode") else "none",
            available_bytes=meminfo.read_host_memory(self._proc).available_bytes,
        )

    def offerers(self) -> tuple[Offerer, ...]:
        """Return who has offered memory; see the protocol."""
        if b"ksm_mergeable:" not in self._told_of("self"):
            raise Unavailable(
                place=f"{self._proc}/PID/ksm_stat",
                problem="this kernel does not tell who has offered memory to KSM (no ksm_mergeable)",
                fix="a newer kernel (6.18 has it)",
            )
        found: list[Offerer] = []
        for name in os.listdir(self._proc):
            if not name.isdigit():
                continue
            try:
                fields = parse_ksm_stat(self._told_of(name))
                if fields.get("ksm_mergeable") != "yes" and not _merges(fields):
                    continue
                content = procfs.read_file(f"{self._proc}/{name}/stat")
                uid = os.stat(f"{self._proc}/{name}").st_uid
            except OSError as error:
                if is_gone(error):
                    continue
                raise translate(error, f"process {name}") from error
            stat = procfs.parse_stat(content, 1)
            if stat is not None:
                found.append(
                    Offerer(
                        process=Instance(pid=int(name), start_ticks=stat.start_ticks),
                        name=os.fsdecode(content[content.find(b"(") + 1 : content.rfind(b")")]),
                        uid=uid,
                        merging_pages=int(fields.get("ksm_merging_pages", "0")),
                        zero_pages=int(fields.get("ksm_zero_pages", "0")),
                        is_offered=fields.get("ksm_mergeable") == "yes",
                    )
                )
        return tuple(found)

    def mergeable_runs(self, process: Instance, ranges: Int64) -> Int64:
        """Return the pages that could be merged; see the protocol."""
        opened = OpenedProcess(process, self._proc)
        try:
            private = contents.private_ranges(opened.mappings(), ranges)
            return contents.anonymous_runs(opened.pagemap, private)
        except OSError as error:
            raise opened.translated(error) from error
        finally:
            opened.close()

    def zero_pages(self, process: Instance, ranges: Int64) -> int:
        """Return how many pages the kernel's page of zeros stands for; see the protocol."""
        opened = OpenedProcess(process, self._proc)
        try:
            return contents.count_zero_pages(opened.pagemap, contents.private_ranges(opened.mappings(), ranges))
        except OSError as error:
            raise opened.translated(error) from error
        finally:
            opened.close()

    def page_contents(self, process: Instance, wanted: Int64) -> PageContents:
        """Return what the pages hold; see the protocol. Often called: the process is opened no further than needed."""
        place = f"process {process.pid}"
        try:
            folder = os.open(f"{self._proc}/{process.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise translate(error, place) from error
        try:
            descriptor = os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            try:
                there = contents.anonymous_runs(descriptor, [(start, end) for start, end in wanted.tolist()])
            finally:
                os.close(descriptor)
            read = contents.read_pages(process.pid, runs.intersection(there, wanted))
            # After the reading: until now nobody else can have had the pid of a folder that still answers.
            stat = procfs.parse_stat(procfs.read_file("stat", dir_fd=folder), 1)
        except OSError as error:
            raise translate(error, place) from error
        finally:
            os.close(folder)
        if stat is None or stat.start_ticks != process.start_ticks or stat.resident_pages == 0:
            raise Vanished(place=place)
        return read

    def read_ksm(self, name: str) -> str:
        """Return the text of a file; see the protocol."""
        self._check(name)
        text = self._read(name)
        return f"{parse_choice(text)}\n" if name == "advisor_mode" else text

    def write_ksm(self, name: str, text: str) -> str:
        """Write a file; see the protocol."""
        self._check(name)
        path = f"{self._ksm}/{name}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, text.encode("ascii"))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise translate(error, path) from error
        return self.read_ksm(name)

    def has_ksm(self, name: str) -> bool:
        """Tell whether this kernel has the file."""
        self._check(name)
        return self._has(name)

    def _check(self, name: str) -> None:
        if name not in KNOBS:
            raise Refused(place=f"ksm/{name}", problem="is not memsculpt's to change", fix=f"one of {sorted(KNOBS)}")

    def _has(self, name: str) -> bool:
        return os.path.exists(f"{self._ksm}/{name}")

    def _read(self, name: str) -> str:
        path = f"{self._ksm}/{name}"
        try:
            return procfs.read_file(path).decode("ascii", "replace")
        except FileNotFoundError as error:
            raise Unavailable(place=path, problem="the kernel has no KSM", fix="a kernel with CONFIG_KSM") from error
        except OSError as error:
            raise translate(error, path) from error

    def _count(self, name: str, absent: int | None = None) -> int:
        if absent is not None and not self._has(name):
            return absent
        text = self._read(name).strip()
        try:
            return int(text)
        except ValueError:
            raise Unavailable(
                place=f"{self._ksm}/{name}", problem=f"holds {text!r}, which is no number", fix="report it"
            ) from None

    def _told_of(self, pid: str) -> bytes:
        try:
            return procfs.read_file(f"{self._proc}/{pid}/ksm_stat", 1024)
        except PermissionError as error:
            raise Unavailable(
                place=f"process {pid}", problem="may not be asked whether it offers memory", fix="run as root"
            ) from error
        except OSError as error:
            if pid == "self":  # no such file: an old kernel
                return b""
            raise translate(error, f"process {pid}") if not is_gone(error) else error from error

    def _ksmd_cpu_s(self) -> float:
        """Return the processor time of KSM's thread, in ns where the kernel counts so; NaN where there is none."""
        for pid in (self._ksmd_pid, self._find_ksmd()):
            if pid is None:
                continue
            try:
                if procfs.read_file(f"{self._proc}/{pid}/comm").strip() == b"ksmd":
                    self._ksmd_pid = pid
                    return int(procfs.read_file(f"{self._proc}/{pid}/schedstat").split()[0]) / NS_PER_S
            except (OSError, IndexError, ValueError):
                continue  # another process by now, or a kernel without schedstat
        return float("nan")

    def _find_ksmd(self) -> int | None:
        for name in os.listdir(self._proc):
            if name.isdigit():
                try:
                    if procfs.read_file(f"{self._proc}/{name}/comm").strip() == b"ksmd":
                        return int(name)
                except OSError:  # it ended while the list was read
                    continue
        return None


def parse_ksm_stat(content: bytes) -> dict[str, str]:
    """Return the fields of /proc/PID/ksm_stat; some have a colon behind their name."""
    fields: dict[str, str] = {}
    for line in content.decode("ascii", "replace").splitlines():
        name, _, value = line.partition(" ")
        if value:
            fields[name.rstrip(":")] = value.strip()
    return fields


def parse_choice(text: str) -> str:
    """Return the word in brackets of "[none] scan-time"; the text itself where there are none."""
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end] if 0 <= start < end else text.strip()


def _merges(fields: dict[str, str]) -> bool:
    return any(fields.get(name, "0") not in {"0", ""} for name in ("ksm_merging_pages", "ksm_zero_pages"))
