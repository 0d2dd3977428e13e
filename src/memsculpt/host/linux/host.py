# SPDX-License-Identifier: Apache-2.0
"""hedge Linux host (v1 only)"""

import os, select, time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
import numpy as np
from memsculpt.domain.observation import CgroupState, HostMemory, Observation, Processes, Workloads
from memsculpt.domain.plan import LimitKind
from memsculpt.domain.settings import PartitionSettings, Settings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.domain.workload import CgroupPath, Instance, WorkloadId
from memsculpt.errors import ConfigError, Transient
from memsculpt.host import doctor
from memsculpt.host.linux import cgroup1
from memsculpt.host.linux.errnos import translate
from memsculpt.host.linux.pager import LinuxPager
from memsculpt.host.protocol import Capability, LimitValue, Moved

ROOT = "/sys/fs/cgroup/memory"
UNI = "/sys/fs/cgroup/unified"
TICK = os.sysconf("SC_CLK_TCK")


def read(path: str) -> str:
    with open(path, errors="surrogateescape") as f:
        return f.read()


class LinuxHost(LinuxPager):
    name = "linux"

    def __init__(self, settings: Settings = Settings()) -> None:
        super().__init__()
        self.settings = settings
        self.parts: tuple[PartitionSettings, ...] = ()
        self.wakefd = os.eventfd(0, os.EFD_NONBLOCK)
        self.stat_fds: dict[int, tuple[int, int]] = {}
        self.detail: dict[tuple[int, int], tuple[float, tuple[int, int, int, int]]] = {}
        self.cg: dict[tuple[int, int], str] = {}

    def now_s(self):
        return time.monotonic()

    def wait_until(self, deadline_s):
        p = select.poll()
        p.register(self.wakefd, select.POLLIN)
        left = deadline_s - time.monotonic()
        if left <= 0:
            return False
        if p.poll(left * 1000):
            try:
                os.eventfd_read(self.wakefd)
            except BlockingIOError:
                pass
            return True
        return False

    def wake(self):
        os.eventfd_write(self.wakefd, 1)

    def watch(self, partitions):
        self.parts = tuple(partitions)
        for p in self.parts:
            if (
                p.match.cgroup
                and not any(c in p.match.cgroup for c in "*?[")
                and not os.path.isdir(f"{ROOT}/{p.match.cgroup}")
            ):
                raise ConfigError(place=f"partition {p.name}", problem="absent cgroup", fix="create it")

    def close(self):
        os.close(self.wakefd)

    def capabilities(self):
        return doctor.examine()

    def cgroups_of(self, part):
        pat = part.match.cgroup
        if not pat:
            return []
        if not any(c in pat for c in "*?["):
            return [pat] if os.path.isdir(f"{ROOT}/{pat}") else []
        return [os.path.relpath(d, ROOT) for d, _, _ in os.walk(ROOT) if fnmatchcase(os.path.relpath(d, ROOT), pat)]

    def observe(self):
        now = time.monotonic()
        mi = {l.split(":")[0]: int(l.split()[1]) * 1024 for l in read("/proc/meminfo").splitlines() if l.endswith("kB")}
        pr = read("/proc/pressure/memory").splitlines()
        mem = HostMemory(
            total_bytes=mi["MemTotal"],
            available_bytes=mi["MemAvailable"],
            free_bytes=mi["MemFree"],
            swap_total_bytes=mi["SwapTotal"],
            swap_free_bytes=mi["SwapFree"],
            some_stall_s=int(pr[0].rsplit("=", 1)[1]) / 1e6,
            full_stall_s=int(pr[1].rsplit("=", 1)[1]) / 1e6,
        )
        groups = [(CgroupPath(c), p.name) for p in self.parts for c in self.cgroups_of(p)]
        rows = []
        member: dict[int, str] = {}
        for c, _ in groups:
            for pid in read(f"{ROOT}/{c}/cgroup.procs").split():
                member[int(pid)] = c
        seen = set()
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            pid = int(name)
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as f:
                    raw = f.read(1024)
                w = raw[raw.rindex(b")") + 2 :].split()
                if w[6] and int(w[6]) & 0x200000:
                    continue
                start = int(w[19])
                key = (pid, start)
                seen.add(key)
                known = self.detail.get(key)
                if pid in member or known is None or now - known[0] > 10:
                    t = {}
                    for l in read(f"/proc/{name}/status").splitlines():
                        if l.startswith(("Rss", "VmSwap")):
                            k, v = l.split(":")
                            t[k] = int(v.split()[0]) * 1024
                    known = (now, (t.get("RssAnon", 0), t.get("RssFile", 0), t.get("RssShmem", 0), t.get("VmSwap", 0)))
                    self.detail[key] = known
                cg = member.get(pid)
                if cg is None:
                    if key not in self.cg:
                        lines = read(f"/proc/{name}/cgroup").splitlines()
                        self.cg[key] = next((l.split(":", 2)[2].lstrip("/") for l in lines if ":memory:" in l), "")
                        if not self.cg[key]:
                            try:
                                self.cg[key] = "exe:" + os.readlink(f"/proc/{name}/exe")
                            except OSError:
                                self.cg[key] = "exe:?"
                    cg = self.cg[key]
            except (FileNotFoundError, ProcessLookupError):
                continue
            rows.append((pid, start, cg, *known[1], (int(w[11]) + int(w[12])) / TICK, int(w[7]), int(w[9])))
        self.detail = {k: v for k, v in self.detail.items() if k in seen}
        self.cg = {k: v for k, v in self.cg.items() if k in seen}
        rows.sort()
        part_of = dict(groups)
        ids = sorted(set(r[2] for r in rows) | set(part_of))
        index = {w: i for i, w in enumerate(ids)}
        col = lambda i, t=np.int64: np.array([r[i] for r in rows], dtype=t)
        procs = Processes(
            pids=col(0),
            start_ticks=col(1),
            workload_index=np.array([index[r[2]] for r in rows], dtype=np.int64),
            anon_bytes=col(3),
            file_bytes=col(4),
            shmem_bytes=col(5),
            swapped_bytes=col(6),
            has_memory_kinds=np.ones(len(rows), bool),
            cpu_s=col(7, np.float64),
            minor_faults_count=col(8),
            major_faults_count=col(9),
        )
        n = len(ids)
        z = lambda t=np.int64: np.zeros(n, t)
        wi = procs.workload_index
        s = lambda c: np.bincount(wi, weights=c, minlength=n).astype(np.int64)
        anon, file, shm, swp = s(procs.anon_bytes), s(procs.file_bytes), s(procs.shmem_bytes), s(procs.swapped_bytes)
        minf, majf = s(procs.minor_faults_count), s(procs.major_faults_count)
        cpu = np.bincount(wi, weights=procs.cpu_s, minlength=n)
        recl, unev, kern, ref, some, full, oom, hits = z(), z(), z(), z(), z(np.float64), z(np.float64), z(), z()
        keys, hasp, hasr = z(), z(bool), z(bool)
        states = []
        for c, pname in groups:
            i = index[c]
            st = {l.split()[0]: int(l.split()[1]) for l in read(f"{ROOT}/{c}/memory.stat").splitlines()}
            usage = int(read(f"{ROOT}/{c}/memory.usage_in_bytes"))
            anon[i] = st["total_rss"]
            shm[i] = st.get("total_shmem", 0)
            file[i] = st["total_cache"] - shm[i]
            swp[i] = st.get("total_swap", 0)
            recl[i] = max(0, file[i] - st["total_mapped_file"] - st["total_dirty"] - st["total_writeback"])
            unev[i] = st["total_unevictable"]
            kern[i] = max(0, usage - st["total_rss"] - st["total_cache"])
            minf[i] = st["total_pgfault"]
            majf[i] = st["total_pgmajfault"]
            ref[i] = st.get("total_workingset_refault_anon", 0)
            hasr[i] = True
            keys[i] = os.stat(f"{ROOT}/{c}").st_ino
            oc = dict(l.split() for l in read(f"{ROOT}/{c}/memory.oom_control").splitlines())
            oom[i] = int(oc.get("oom_kill", 0))
            hits[i] = int(read(f"{ROOT}/{c}/memory.failcnt"))
            pp = f"{UNI}/{c}/memory.pressure"
            if os.path.exists(pp):
                l = read(pp).splitlines()
                some[i] = int(l[0].rsplit("=", 1)[1]) / 1e6
                full[i] = int(l[1].rsplit("=", 1)[1]) / 1e6
                hasp[i] = True
            lim = self.read_limit(c, LimitKind.LIMIT).size_bytes
            states.append(
                CgroupState(
                    cgroup=c,
                    partition=pname,
                    used_bytes=usage,
                    swapped_bytes=int(swp[i]),
                    limit_bytes=lim,
                    hard_limit_bytes=lim,
                    guarantee_bytes=self.read_limit(c, LimitKind.GUARANTEE).size_bytes,
                    is_own=False,
                )
            )
        for i, w in enumerate(ids):
            if not keys[i]:
                keys[i] = min([r[1] for r in rows if r[2] == w] or [0]) if n < 500 else 0
        cgs = tuple(CgroupPath(w) if not w.startswith("exe:") else None for w in ids)
        work = Workloads(
            ids=tuple(WorkloadId(w) for w in ids),
            partitions=tuple(part_of.get(w) for w in ids),
            cgroups=cgs,
            instance_keys=keys,
            resident_bytes=anon + file + shm,
            anon_bytes=anon,
            file_bytes=file,
            shmem_bytes=shm,
            swapped_bytes=swp,
            reclaimable_bytes=recl,
            unevictable_bytes=unev,
            kernel_bytes=kern,
            minor_faults_count=minf,
            major_faults_count=majf,
            refaults_count=ref,
            cpu_s=cpu,
            read_bytes=z(),
            written_bytes=z(),
            some_stall_s=some,
            full_stall_s=full,
            oom_kills_count=oom,
            limit_hits_count=hits,
            process_count=np.bincount(wi, minlength=n),
            has_refaults=hasr,
            has_io=z(bool),
            has_pressure=hasp,
        )
        return Observation(time_s=now, memory=mem, processes=procs, workloads=work, cgroups=tuple(states))

    def read_limit(self, cgroup, kind):
        return cgroup1.value(read(f"{ROOT}/{cgroup}/{cgroup1.FILES[kind]}"))

    def write_limit(self, cgroup, kind, size_bytes):
        return self.restore_limit(cgroup, kind, "-1" if size_bytes >= UNLIMITED_BYTES else str(size_bytes))

    def restore_limit(self, cgroup, kind, text):
        try:
            with open(f"{ROOT}/{cgroup}/{cgroup1.FILES[kind]}", "w") as f:
                f.write(text)
        except OSError as e:
            raise translate(e, str(cgroup)) from e
        return self.read_limit(cgroup, kind)

    def reclaim(self, cgroup, size_bytes):
        raise Transient(place=str(cgroup), problem="no reclaim", retry_in_s=1)

    def create_cgroup(self, cgroup):
        os.makedirs(f"{ROOT}/{cgroup}", exist_ok=True)

    def remove_cgroup(self, cgroup):
        os.rmdir(f"{ROOT}/{cgroup}")

    def cgroup_of(self, process):
        return CgroupPath(
            next(
                l.split(":", 2)[2].lstrip("/")
                for l in read(f"/proc/{process.pid}/cgroup").splitlines()
                if ":memory:" in l
            )
        )

    def move_process(self, process, cgroup):
        raise Transient(place="x", problem="x", retry_in_s=1)
