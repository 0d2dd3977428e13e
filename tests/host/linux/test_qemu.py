# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line: names, UUIDs and monitors, however they are written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsculpt.host.linux.qemu import CommandLine, is_qemu, options_of, parse_command_line

UUID = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
QEMU = "qemu-system-x86_64"


def parsed(*arguments: str) -> CommandLine:
    return parse_command_line("\0".join((QEMU, *arguments)).encode() + b"\0")


@pytest.mark.parametrize(
    ("exe", "expected"),
    [
        ("/usr/bin/qemu-system-x86_64", True),
        ("/usr/libexec/qemu-kvm", True),
        ("/usr/bin/kvm", True),
        ("/usr/bin/qemu-img", False),
        ("/usr/sbin/virtqemud", False),
        ("/usr/bin/qemu-ga", False),
        ("", False),
    ],
)
def test_programs(exe: str, expected: bool):
    assert is_qemu(exe) is expected


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("web-1", "web-1"),
        ("guest=web-1,debug-threads=on", "web-1"),
        ("web-1,process=qemu:web", "web-1"),
        ("debug-threads=on,guest=web-1", "web-1"),
        ("a,,b", "a,b"),
        ("guest=a,,b,debug-threads=on", "a,b"),
        ('{"guest": "web-1", "debug-threads": true}', "web-1"),
        ("guest=", ""),
    ],
)
def test_names(value: str, name: str):
    for option in ("-name", "--name"):
        assert parsed(option, value).name == name


def test_uuids_are_of_one_case():
    assert parsed("-uuid", UUID).uuid == UUID.lower()
    assert parsed().uuid == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("-qmp", "unix:/run/a.qmp,server=on,wait=off"),
        ("-qmp", "unix:/run/a.qmp,server,nowait"),
        ("-qmp-pretty", "unix:/run/a.qmp,wait=off,server=on"),
        ("-chardev", "socket,id=m,path=/run/a.qmp,server=on,wait=off", "-mon", "chardev=m,mode=control"),
        ("-mon", "m,mode=control,pretty=on", "-chardev", "socket,path=/run/a.qmp,server=on,id=m"),
        ("-chardev", "backend=socket,id=m,path=/run/a.qmp,server=on", "-qmp", "chardev:m"),
        (
            "-chardev",
            json.dumps(
                {
                    "id": "m",
                    "backend": {
                        "type": "socket",
                        "data": {"addr": {"type": "unix", "data": {"path": "/run/a.qmp"}}, "server": True},
                    },
                }
            ),
            "-mon",
            json.dumps({"chardev": "m", "mode": "control"}),
        ),
    ],
)
def test_monitors(arguments: tuple[str, ...]):
    """Every way of writing one and the same monitor."""
    found = parsed("-nodefaults", *arguments)
    assert found.monitors == ("/run/a.qmp",)
    assert not found.is_libvirts


@pytest.mark.parametrize(
    "arguments",
    [
        ("-monitor", "unix:/run/human,server=on"),
        ("-chardev", "socket,id=m,path=/run/human,server=on", "-mon", "chardev=m,mode=readline"),
        ("-chardev", "socket,id=serial,path=/run/serial,server=on"),
    ],
)
def test_human_monitors_and_other_sockets_are_none(arguments: tuple[str, ...]):
    assert parsed(*arguments).monitors == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-qmp", "stdio"), "on stdio"),
        (("-qmp", "tcp:127.0.0.1:4444,server=on"), "on tcp"),
        (("-qmp", "unix:/run/a.qmp"), "server=off"),
        (("-chardev", "socket,id=m,fd=5,server=on", "-mon", "chardev=m,mode=control"), "file descriptor 5"),
        (("-mon", "chardev=gone,mode=control"), "chardev gone"),
    ],
)
def test_monitors_that_cannot_be_opened_say_why(arguments: tuple[str, ...], words: str):
    found = parsed(*arguments)
    assert found.monitors == ()
    assert words in found.unreachable[0]


def test_libvirts_own_monitor_is_marked_and_left_alone():
    """As libvirt 9.0 starts it: the socket is a file descriptor of libvirtd. A second monitor is ours to use."""
    libvirts = ("-chardev", "socket,id=charmonitor,fd=24,server=on,wait=off", "-mon",
                "chardev=charmonitor,id=monitor,mode=control")  # fmt: skip
    found = parsed("-name", "guest=web-1,debug-threads=on", *libvirts)
    assert found.is_libvirts
    assert (found.monitors, found.unreachable) == ((), ())
    assert parsed(*libvirts, "-qmp", "unix:/run/own.qmp,server=on").monitors == ("/run/own.qmp",)


def test_abstract_sockets_and_taps():
    found = parsed("-chardev", "socket,id=m,path=vm1,abstract=on,server=on", "-mon", "chardev=m,mode=control",
                   "-netdev", "tap,id=n0,ifname=tap7,script=no", "-netdev", "user,id=n1")  # fmt: skip
    assert found.monitors == ("@vm1",)
    assert found.taps == ("tap7",)


@given(
    st.lists(st.text(max_size=12) | st.sampled_from(["-name", "-qmp", "-mon", "-chardev", "{", "-uuid"]), max_size=9)
)
def test_nothing_breaks_it(arguments: list[str]):
    """A command line is whatever somebody started: it is understood or passed over."""
    content = "\0".join(arguments).encode("utf-8", "surrogatepass")
    parse_command_line(content)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(content: bytes):
    parse_command_line(content)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(st.characters(codec="ascii")), max_size=5))
def test_what_is_written_is_read(options: dict[str, str]):
    """Values survive, whatever commas they hold, when these are doubled as QEMU wants them."""
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in options.items())
    if not text.lstrip().startswith("{"):
        assert dict(options_of(text, implied="first")) == (options or {"first": ""})
