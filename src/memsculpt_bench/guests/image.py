# SPDX-License-Identifier: Apache-2.0
"""The root image of the guests: ext4 with systemd, D-Bus, Python 3.11 and the runtime dependencies of memsculpt.

One image serves both flavours: with `INIT_PLAIN` as PID 1 it is a bare kernel with cgroup v2 and a shell, with
`INIT_SYSTEMD` a machine run by systemd. It is made without root's help inside it: packages are unpacked, no maintainer
script runs, so what those would have written (users, machine-id, which units start) is written here.

The source under test is not in it, because it changes all the time: see `pack_source`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from memsculpt_bench.guests import debian

PACKAGES = ("python3.11", "systemd", "dbus", "busybox-static", "libstdc++6", "libgcc-s1", "libbpf1")
# Only maintainer scripts need these.
LEAVE_OUT = (
    "perl*",
    "libperl*",
    "debconf*",
    "adduser",
    "passwd",
    "dpkg",
    "tar",
    "libdb5*",
    "libsemanage*",
    "libsepol*",
)

IMAGE_BYTES = 512 << 20  # sparse: what is not written takes no room
INODES = 24_000
LEAST_AGE_TO_DELETE_S = 7 * 24 * 3600

INIT_PLAIN = "/lab/init"
INIT_SYSTEMD = "/lib/systemd/systemd"
SOURCE_ROOT = "/opt/memsculpt/src"  # where the source under test is in the guest
TENANT = "/lab/tenant.py"  # a program that holds memory: BYTES READY_FILE
SITE_PACKAGES = "usr/lib/python3/dist-packages"

SHELL_PORT = "org.memsculpt.lab.0"
# How every guest's first shell ends: it finds its port, says that it is ready, and serves commands for good.
SERVE_SHELL = f"""\
n=0; port=
while [ -z "$port" ] && [ $n -lt 200 ]; do
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat $name 2>/dev/null)" = {SHELL_PORT} ] && port=/dev/$(basename ${{name%/name}})
    done
    [ -c "$port" ] || {{ port=; sleep 0.05; n=$((n+1)); }}
done
exec 0<>$port 1>&0 2>&1            # one read-write open: a virtio port that is opened twice is EBUSY
echo "GUEST-READY $(cut -d' ' -f1 /proc/uptime)"
while :; do sh; done
"""

FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:101::/nonexistent:/usr/sbin/nologin\n"
    "systemd-network:x:998:998::/nonexistent:/usr/sbin/nologin\n"
    "tenant:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nkmem:x:15:\nutmp:x:43:\nusers:x:100:\nmessagebus:x:101:\n"
    "systemd-journal:x:102:\nsystemd-network:x:998:\ntenant:x:1000:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
    "etc/machine-id": "6d656d7363756c70742d746573742d31\n",
    "etc/fstab": "",
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="memsculpt lab"\n',
    # No cd or export carries over from one command to the next: the host wraps each one in a shell of its own.
    "lab/shell": f"""\
#!/bin/sh
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/root LANG=C.UTF-8
export PYTHONPATH={SOURCE_ROOT} PYTHONDONTWRITEBYTECODE=1
{SERVE_SHELL}""",
    INIT_PLAIN.lstrip("/"): """\
#!/bin/sh
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
echo "+cpu +io +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
exec /lab/shell
""",
    # Touches every page of what it holds, says so, and then leaves it untouched, as real heaps do.
    TENANT.lstrip("/"): """\
import pathlib, signal, sys
held = b"x" * int(sys.argv[1])
pathlib.Path(sys.argv[2]).touch()
signal.pause()
""",
    "usr/local/bin/memsculpt": '#!/bin/sh\nexec python3.11 -m memsculpt "$@"\n',
    "etc/systemd/system/lab-shell.service": """\
[Unit]
Description=Shell of the test lab on a virtio-serial port
After=dbus.socket

[Service]
ExecStart=/lab/shell
# The tests look at memory; what they start must not be counted, limited or killed as a part of this unit's shell.
OOMScoreAdjust=-900
KillMode=process
""",
    "etc/systemd/system/lab.target": """\
[Unit]
Description=All that the test lab needs
Requires=basic.target
After=basic.target
Wants=lab-shell.service dbus.service
AllowIsolate=yes
""",
    # Every service has its counters, as on a machine with the defaults of Debian; said here, so that a change of the
    # defaults cannot change the tests.
    "etc/systemd/system.conf": "[Manager]\nDefaultMemoryAccounting=yes\nDefaultTimeoutStopSec=5s\n",
    "etc/systemd/journald.conf": "[Journal]\nStorage=volatile\nRuntimeMaxUse=4M\n",
}
EXECUTABLE = ("lab/shell", "lab/init", "usr/local/bin/memsculpt")

# Slow under emulation, or useless without hardware; none of them is under test.
MASKED_UNITS = (
    "console-getty.service",
    "cryptsetup.target",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "e2scrub_all.timer",
    "getty.target",
    "getty@tty1.service",
    "kmod-static-nodes.service",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
)


def ensure(cache: Path, lock_file: Path) -> Path:
    """Return the root image for this recipe and these dependencies; make it if the cache has none."""
    place = cache / "images" / key(lock_file)
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
        try:
            _build_root(work, lock_file)
            (work / "image").mkdir()
            _make_ext4(work / "root", work / "image" / "root.ext4")
            debian.replace_folder(work / "image", place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        _forget_old_images(place)
    return place / "root.ext4"


def is_cached(cache: Path, lock_file: Path) -> bool:
    """Tell whether the cache has the image."""
    return (cache / "images" / key(lock_file)).exists()


def key(lock_file: Path) -> str:
    """Name an image by all that decides its content: this recipe, how packages are unpacked, the lock file."""
    digest = hashlib.sha256()
    for recipe in (Path(__file__), Path(debian.__file__)):
        digest.update(recipe.read_bytes())
    digest.update(lock_file.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def locked(cache: Path) -> Generator[None]:
    """Let one session at a time fill the cache; another one waits, and then finds it filled."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pack_source(source: Path, drive: Path) -> None:
    """Write the source under test, compiled, to `drive` as a tar that the guest unpacks from the block device."""
    copy = drive.parent / "source" / "src"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    _compile(copy, strip=copy.parent)
    with tarfile.open(drive, "w") as archive:
        archive.add(copy, arcname="src")
    shutil.rmtree(copy.parent)


def _build_root(work: Path, lock_file: Path) -> None:
    root = work / "root"
    for merged in ("bin", "sbin", "lib", "lib64"):  # as on every Debian 12: the top folders are links into /usr
        (root / "usr" / merged).mkdir(parents=True)
        (root / merged).symlink_to(f"usr/{merged}")
    debian.unpack(debian.download_closure(PACKAGES, work), root, leave_out=LEAVE_OUT)
    for path in ("dev", "proc", "sys", "run", "tmp", "mnt", "root", "opt/memsculpt", "var/lib", "var/tmp", "lab"):
        (root / path).mkdir(parents=True, exist_ok=True)
    for path, content in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).unlink(missing_ok=True)  # not through a link of the package
        (root / path).write_text(content, encoding="utf-8")
    for path in EXECUTABLE:
        (root / path).chmod(0o755)
    for unit in MASKED_UNITS:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (root / "etc/systemd/system/default.target").symlink_to("lab.target")
    (root / "var/run").symlink_to("/run")
    _link_busybox(root)
    _install_dependencies(root / SITE_PACKAGES, lock_file)
    for unneeded in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
        shutil.rmtree(root / unneeded, ignore_errors=True)
    _compile(root / "usr/lib/python3.11", strip=root)
    _compile(root / SITE_PACKAGES, strip=root)


def _link_busybox(root: Path) -> None:
    """Give the image the commands that it lacks; a program of a package stays."""
    for applet in debian.run([root / "usr/bin/busybox", "--list"]).split():
        if not any((root / "usr" / folder / applet).exists() for folder in ("bin", "sbin")):
            (root / "usr/bin" / applet).symlink_to("busybox")


def _install_dependencies(target: Path, lock_file: Path) -> None:
    if sys.version_info[:2] != (3, 11):
        raise debian.Unavailable(f"the guests run Python 3.11, this is {sys.version.split()[0]}: its wheels differ")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--only-binary=:all:"]
    debian.run([*pip, "--target", target, "--require-hashes", "-r", lock_file])


def _compile(folder: Path, *, strip: Path) -> None:
    """Compile all modules, so that the slow guest need not; the clock and file times of the guest do not matter.

    What does not compile is left: packages contain templates, and tests of the parser, that are no valid Python.
    """
    script = (
        "import compileall, py_compile, sys; compileall.compile_dir(sys.argv[1], quiet=2, stripdir=sys.argv[2], "
        "invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
    )
    debian.run([sys.executable, "-c", script, folder, strip], timeout_s=300)


def _make_ext4(root: Path, image: Path) -> None:
    owner = () if os.geteuid() == 0 else ("-E", "root_owner=0:0")
    options = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", str(INODES), *owner]
    debian.run(["mke2fs", *options, "-d", root, image, f"{IMAGE_BYTES >> 10}k"])


def _forget_old_images(current: Path) -> None:
    for other in current.parent.iterdir():
        if other != current and time.time() - other.stat().st_mtime > LEAST_AGE_TO_DELETE_S:
            shutil.rmtree(other, ignore_errors=True)
