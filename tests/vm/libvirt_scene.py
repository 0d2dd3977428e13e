# SPDX-License-Identifier: Apache-2.0
"""A real libvirt with one guest, in a mount namespace of its own: run by test_libvirt.py, tells what it found as JSON.

libvirt asks QEMU for KVM when it probes it, so /dev/kvm must not be there: /dev is a tmpfs with what is needed, and the
scene ends at once where the device is still to be seen. libvirt makes no cgroups (cgroup_controllers=[ ]).

    unshare -m --propagation private python libvirt_scene.py FOLDER KERNEL INITRAMFS
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

UUID = "6d656d73-6375-4c70-9400-0000000000bb"
MIB = 1 << 20
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "ptmx", "fd")
CONFIGURATION = """\
stdio_handler = "file"
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = [ ]
namespaces = [ ]
dynamic_ownership = 0
"""
DOMAIN = """\
<domain type='qemu'><name>web-1</name><uuid>{uuid}</uuid><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<memoryBacking><nosharepages/></memoryBacking>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initramfs}</initrd>
<cmdline>console=ttyS0 quiet panic=-1</cmdline></os><cpu mode='maximum'/>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<serial type='file'><source path='{folder}/console.log'/></serial>
<memballoon model='virtio' autodeflate='on' freePageReporting='on'/></devices></domain>
"""


def hide_kvm(folder: Path) -> None:
    """Leave nothing of /dev but what is needed, and make the user that libvirt's driver looks for. Here only."""
    devices = folder / "dev"
    devices.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", str(devices))
    for name in DEVICES:
        source = Path("/dev", name)
        if source.is_symlink():
            (devices / name).symlink_to(os.readlink(source))
            continue
        (devices / name).mkdir() if source.is_dir() else (devices / name).touch()
        run("mount", "--rbind", str(source), str(devices / name))
    run("mount", "--move", str(devices), "/dev")
    if os.path.exists("/dev/kvm"):
        sys.exit("/dev/kvm is still to be seen")
    for name, line in (("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false\n"), ("group", "libvirt-qemu:x:64055:\n")):
        copy = folder / name
        copy.write_text(Path("/etc", name).read_text() + line)
        run("mount", "--bind", str(copy), f"/etc/{name}")


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def wait_for(holds, what: str, timeout_s: float = 30.0):
    """Return what `holds` returns as soon as that is true."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := holds()):
        if time.monotonic() > deadline_s:
            sys.exit(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)
    return found


def main(folder: Path, kernel: str, initramfs: str) -> None:
    hide_kvm(folder)
    import libvirt

    from memsculpt.domain.settings import ObserveSettings, Settings, VmSettings
    from memsculpt.domain.vm import VmState
    from memsculpt.host import open_host

    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "qemu.conf").write_text(CONFIGURATION)
    uri = f"qemu:///embed?root={root}"
    libvirt.virEventRegisterDefaultImpl()
    connection = libvirt.open(uri)
    domain = connection.createXML(DOMAIN.format(uuid=UUID, kernel=kernel, initramfs=initramfs, folder=folder))
    pid = int((root / "run" / "qemu" / "web-1.pid").read_text())
    told: dict[str, object] = {}
    settings = Settings(observe=ObserveSettings(), vms=VmSettings(discover=False, libvirt=uri))
    host = open_host(settings)
    is_open = True
    try:

        def ours(holds=lambda _: True):
            return next((one for one in host.observe().vms if one.id == UUID and holds(one)), None)

        first = wait_for(ours, "the VM's process")
        told["before_it_was_asked"] = [first.via, first.state.value, first.process.pid == pid]
        wait_for(lambda: ours(lambda one: one.guest is not None and one.guest.total_bytes), "the guest's statistics")
        reading = ours()
        told["reading"] = {
            "via": reading.via,
            "state": reading.state.value,
            "ram_mib": reading.ram_bytes // MIB,
            "balloon_mib": reading.balloon_bytes // MIB,
            "total_mib": reading.guest.total_bytes // MIB,
            "used_mib": reading.guest.used_bytes // MIB,
            "deflate_on_oom": reading.features.deflate_on_oom,
            "free_page_reporting": reading.features.free_page_reporting,
            "vcpu_s": reading.vcpu_s,
        }
        ram = host.guest_ram(UUID)
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        edges = [[int(edge, 16) for edge in line.split()[0].split("-")] for line in maps]
        told["ram"] = {
            "backing": ram.backing.value,
            "is_mapped": all(
                any(low <= start and end <= high for low, high in edges) for start, end in ram.host_ranges()
            ),
            "mib": sum(end - start for start, end in ram.host_ranges()) // MIB,
        }
        asked = host.set_balloon(UUID, 160 * MIB)
        told["balloon"] = [asked.before_bytes // MIB, asked.asked_bytes // MIB]
        wait_for(lambda: ours(lambda one: one.balloon_bytes == 160 * MIB), "the balloon")
        told["balloon_by_libvirt_mib"] = domain.info()[2] // 1024
        told["wakes_for_our_own"] = host.wait_until(host.now_s() + 3.0)
        domain.setMemoryFlags(192 * 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        told["wakes_for_an_operator"] = host.wait_until(host.now_s() + 20.0)
        domain.suspend()
        wait_for(lambda: ours(lambda one: one.state is VmState.PAUSED), "the pause to be told")
        domain.resume()
        told["kvm_is_open"] = any(
            "kvm" in os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")
        )
        told["is_polled"] = "<stats period" in domain.XMLDesc()
        is_open = host.close() is not None
        told["is_polled_afterwards"] = "<stats period" in domain.XMLDesc()
        domain.destroy()
    finally:
        if is_open:
            host.close()
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, 9)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
