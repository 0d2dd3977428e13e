# SPDX-License-Identifier: Apache-2.0
"""A configuration is followed as a whole or refused as a whole, with file, line, what is wrong and the fix."""

import contextlib
import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsculpt.config import keys, load_settings, load_source, parse_settings, read_socket
from memsculpt.domain.settings import Kind, Mode, PlanSettings, Sculpt, Settings, TrustGroup, VmSettings
from memsculpt.domain.units import UNLIMITED_BYTES
from memsculpt.errors import ConfigError

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9][0-9]-*.toml"))
GIB = 1 << 30
MIB = 1 << 20
PARTITION = '[[partition]]\nname = "a"\nmatch = { exe = "x" }\n'


def load(text, total_bytes=64 * GIB):
    """The settings of a text."""
    return parse_settings(text, place="f.toml", total_bytes=total_bytes).settings


def complaints_of(text, total_bytes=64 * GIB):
    """Every complaint about a text, which must have one."""
    with pytest.raises(ConfigError) as caught:
        load(text, total_bytes)
    assert caught.value.exit_code == 2
    return list(caught.value.complaints or (caught.value,))


def test_without_a_file_all_is_default():
    """It observes, and names no partition."""
    assert load_settings(None, GIB) == Settings()
    assert Settings().mode is Mode.OBSERVE


def test_an_empty_file_is_all_default():
    """Nothing said is nothing changed."""
    assert load("") == Settings()
    assert load("# only a comment\n") == Settings()


def test_every_value_arrives_where_it_belongs():
    """Units become bytes, seconds and ratios."""
    found = load(
        """
        [agent]
        mode = "apply"
        interval = "500ms"
        capacity = "20GiB"
        listen = "[::1]:80"
        [plan]
        page_out = "1.5GiB/s"
        margin = "2.5%"
        prefetch = false
        sculpt = "off"
        [forecast]
        horizons = ["2s", "1min"]
        act_horizon = "2s"
        levels = ["50%", "99.9%"]
        [[partition]]
        name = "cache"
        match = { cgroup = "a/*", exe = "*/r", user = "u", pid = 7, vm = "v", label = "l" }
        guarantee = "2GiB"
        ceiling = "unlimited"
        priority = 2.5
        create = true
        critical = true
        trim = true
        [[partition]]
        name = "batch"
        match.exe = "*/worker"
        kind = "fixed"
        size = "4GiB"
        """
    )
    assert (found.mode, found.interval_s, found.capacity_bytes, found.listen) == (Mode.APPLY, 0.5, 20 * GIB, "[::1]:80")
    assert found.plan == PlanSettings(
        page_out_bytes_per_s=1.5 * GIB, margin_ratio=0.025, prefetch=False, sculpt=Sculpt.OFF
    )
    assert found.forecast.horizons_s == (2.0, 60.0)
    assert found.forecast.levels == pytest.approx((0.5, 0.999))
    cache, batch = found.partitions
    assert (cache.match.cgroup, cache.match.pid, cache.match.label) == ("a/*", 7, "l")
    assert (cache.guarantee_bytes, cache.ceiling_bytes, cache.priority) == (2 * GIB, UNLIMITED_BYTES, 2.5)
    assert cache.create
    assert cache.critical
    assert cache.trim
    assert not batch.trim
    assert (batch.kind, batch.size_bytes) == (Kind.FIXED, 4 * GIB)


def test_virtual_machines_and_trust_groups_arrive():
    """Sockets, the libvirt host, the floor and who may share with whom."""
    found = load(
        """
        [vms]
        discover = false
        sockets = ["/run/vms/*.qmp", "/srv/db.sock"]
        libvirt = "qemu:///system"
        timeout = "500ms"
        balloon = false
        floor = "256MiB"
        dirty_rate = "1min"
        [[trust]]
        name = "tenant-a"
        vms = ["web-*", "db-1"]
        [[trust]]
        name = "tenant-b"
        vms = ["b-*"]
        """
    ).vms
    assert found == VmSettings(
        discover=False,
        sockets=("/run/vms/*.qmp", "/srv/db.sock"),
        libvirt="qemu:///system",
        timeout_s=0.5,
        balloon=False,
        floor_bytes=256 * MIB,
        dirty_every_s=60.0,
        trust=(
            TrustGroup(name="tenant-a", vms=("web-*", "db-1")),
            TrustGroup(name="tenant-b", vms=("b-*",)),
        ),
    )


# text, the line that must be named, words of the problem, words of the fix
BAD = [
    ('[agent]\nmode = "aply"', 2, 'mode: "aply" is not known', '"observe" or "apply"'),
    ('[agent]\nmode = ["apply"]', 2, "is not known", '"observe" or "apply"'),
    ('[agent]\n\nintervall = "1s"', 3, '"intervall" is no key of [agent]', "did you mean interval?"),
    ("[agnet]\n", 1, '"agnet" is no key', "did you mean agent?"),
    ('page_out = "1MiB/s"', 1, '"page_out" is no key of the file', "belongs in [plan]"),
    ('[plan]\nzzz = "1MiB"', 2, '"zzz"', "known here: margin"),
    ('[agent]\ninterval = "1sec"', 2, "unknown unit 'sec'", "write one of us, ms, s"),
    ('[agent]\ninterval = "1ms"', 2, "out of bounds", "from 100 ms to 60.0 s"),
    ('[vms]\nsocket = "/a"', 2, '"socket" is no key of [vms]', "socket belongs in [agent]"),
    ('[vms]\nsockets = "/run/a.qmp"', 2, "is no list of texts", '["/run/vms/*.qmp"]'),
    ('[vms]\nsockets = ["run/a.qmp"]', 2, '"run/a.qmp" is not absolute', "write the whole path"),
    ('[vms]\nsockets = ["/a", "/a"]', 2, "has an entry twice", "write each once"),
    ('[vms]\nlibvirt = "xen:///"', 2, "no URI of a QEMU host", '"qemu:///system"'),
    ('[vms]\nlibvirt = "qemu+ssh://far/system"', 2, "another machine's", "run memsculpt there"),
    ('[vms]\ntimeout = "1h"', 2, "out of bounds", "from 100 ms to 60.0 s"),
    ('[vms]\nfloor = "1MiB"', 2, "is too small", "at least 32.0MiB"),
    ('[vms]\ndirty_rate = "1s"', 2, "out of bounds", "from 10.0 s"),
    ('[trust]\nname = "a"', 1, "[trust] is one table", "write [[trust]]"),
    ('[[trust]]\nvms = ["a"]', 1, "this trust group has no name", 'add name = "tenant-a"'),
    ('[[trust]]\nname = "a"', 1, "this trust group has no vms", 'add vms = ["web-*"]'),
    ('[[trust]]\nname = "a"\nvms = []', 3, "no list of texts", '["web-*"]'),
    ('[[trust]]\nname="a"\nvms=["x"]\n[[trust]]\nname="a"\nvms=["y"]', 5, "is there twice", "put them together"),
    ('[[trust]]\nname="a"\nvms=["x"]\n[[trust]]\nname="b"\nvms=["x"]', 6, 'in group "a" as well', "one of them"),
    ("[agent]\ninterval = 1", 2, "1 is a bare number", "with its unit"),
    ("[agent]\ninterval = true", 2, "true is not a duration", 'such as "1s"'),
    ('[agent]\ncapacity = "90"', 2, '"90"', '"20GiB" or "90%"'),
    ('[agent]\ncapacity = "120%"', 2, "out of bounds", '"100%"'),
    ('[agent]\ncapacity = "128GiB"', 2, "more than this host's main memory", "64.0 GiB"),
    ('[agent]\nsocket = "agent.sock"', 2, "not absolute", "/run/memsculpt"),
    ('[agent]\nsocket = "/' + "x" * 200 + '"', 2, "longer than a socket's path", "shorter"),
    ('[agent]\nstate = ""', 2, "is empty", "/var/lib/memsculpt"),
    ('[agent]\nlisten = "0.0.0.0:80"', 2, "not an address of the loopback", "127.0.0.1"),
    ('[agent]\nlisten = "127.0.0.1"', 2, "not an address with a port", "127.0.0.1:8472"),
    ('[agent]\nlisten = "127.0.0.1:70000"', 2, "not an address with a port", "127.0.0.1:8472"),
    ("agent = 3", 1, "agent: 3 is not a table", "[agent]"),
    ('[plan]\npage_out = "512MB/s"', 2, "decimal unit", '"512MiB/s" if 1024 is meant'),
    ('[plan]\npage_out = "512MiB"', 2, "page_out", '"256MiB/s"'),
    ("[plan]\nmargin = 0.03", 2, "0.03 is a bare number", '"90%"'),
    ("[plan]\nsculpt = true", 2, "true is not known", 'write "off" or "cold" or "all"'),
    ('[plan]\nprefetch = "yes"', 2, "neither true nor false", "without quotes"),
    ('[plan]\nsqueeze_max = "1d"', 2, "out of bounds", "1.0 s"),
    ('[forecast]\nact_horizon = "4s"', 2, "none of the horizons (3.0 s, 10.0 s, 60.0 s)", "add it to horizons"),
    ('[forecast]\nhorizons = ["10s", "3s"]\nact_horizon="3s"', 2, "do not rise", "small to large"),
    ("[forecast]\nlevels = []", 2, "no list", '"99%"'),
    ("[forecast]\nlevels = [0.5]", 2, "bare number", "%"),
    ('[forecast]\nhistory = "30s"', 2, "shorter than the longest horizon", "60.0 s"),
    ('[agent]\ninterval = "5s"', 2, "longer than the first horizon", "shorten [agent] interval"),
    ("[partition]\nname = 'a'", 1, "is one table", "[[partition]]"),
    ("partition = [1]", 1, "is not a table", "partition"),
    ('[[partition]]\nmatch = { exe = "x" }', 1, "has no name", "name ="),
    ('[[partition]]\nname = "a"', 1, "matches nothing", "cgroup"),
    ('[[partition]]\nname = "a"\nmatch = {}', 3, "matches nothing", "cgroup"),
    ('[[partition]]\nname = "a"\nmatch = "x"', 3, "match", "match = {"),
    (
        '[[partition]]\nname = "a"\nmatch = { cgroups = "x" }',
        3,
        '"cgroups" is no key of [match]',
        "did you mean cgroup?",
    ),
    ('[[partition]]\nname = "a"\nmatch = { cgroup = "/a/b" }', 3, "slash", "below the memory controller's root"),
    ('[[partition]]\nname = "a"\nmatch = { pid = "7" }', 3, "no process id", "4711"),
    ('[[partition]]\nname = "a/b"\nmatch = { exe = "x" }', 2, "cgroup's name", "letters"),
    ('[[partition]]\nname = "a\\n"\nmatch = { exe = "x" }', 2, "cgroup's name", "letters"),
    (PARTITION + PARTITION, 5, 'partition "a" is there twice', "name of its own"),
    (PARTITION + 'guarantee = "8GiB"\nceiling = "6GiB"', 4, "8.0 GiB", "raise the ceiling"),
    (PARTITION + 'guarantee = "100GiB"', 4, "more than the capacity of 57.6 GiB", "lower guarantees"),
    (PARTITION + 'kind = "fixed"', 4, "has no size", "size ="),
    (PARTITION + 'size = "1GiB"', 4, "is dynamic", 'kind = "fixed"'),
    (PARTITION + 'kind = "fixed"\nsize = "1GiB"\nceiling = "512MiB"', 5, "not between", "neither"),
    (PARTITION + 'kind = "fixed"\nsize = "60GiB"', 5, "fixed sizes", "lower guarantees or sizes"),
    (PARTITION + "priority = 0", 4, "out of bounds", "above 0"),
    (PARTITION + "priority = nan", 4, "out of bounds", "above 0"),
    (PARTITION + "create = 1", 4, "neither true nor false", "true or false"),
    (PARTITION + 'critical = "yes"', 4, 'critical: "yes" is neither true nor false', "true or false"),
    (PARTITION + "critcal = true", 4, "no key of", "did you mean critical?"),
    ("[sense]\ncritical = true", 2, "no key of", "belongs in a [[partition]]"),
    ("[agent\nmode = 1", 1, "is not TOML", "toml.io"),
    ("a = 1\na = 2", 2, "is not TOML", "toml.io"),
    ('x = "never ends', 1, "is not TOML", "toml.io"),
]


@pytest.mark.parametrize(("text", "line", "problem", "fix"), BAD)
def test_what_is_wrong_is_said_with_its_line_and_its_fix(text, line, problem, fix):
    """One fault, one complaint, at the line where it stands."""
    (complaint,) = complaints_of(text)
    assert complaint.place == f"f.toml:{line}"
    assert problem in complaint.problem
    assert fix in complaint.fix


def test_all_complaints_come_together_in_the_order_of_the_lines():
    """Whoever mends a file mends it once."""
    text = '[agent]\nmode = "x"\n[plan]\nmargin = 3\nfoo = 1\n' + PARTITION + "create = 0\n[[partition]]\n"
    complaints = complaints_of(text)
    assert [each.place for each in complaints] == [f"f.toml:{line}" for line in (2, 4, 5, 9, 10, 10)]
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert "6 complaints" in caught.value.problem
    assert all(str(each) in str(caught.value) for each in complaints)


def test_small_hosts_refuse_what_large_ones_take():
    """Whether promises fit is known when the host is known: floors and fixed sizes count too."""
    text = PARTITION + 'guarantee = "900MiB"\n' + PARTITION.replace('"a"', '"b"')
    load(text, 2 * GIB)
    (complaint,) = complaints_of(text, 1000 * MIB)
    assert complaint.place == "f.toml:5"  # the second partition's floor is what does not fit any more
    load(text, 1018 * MIB)  # 90 % of it is 916.2 MiB: the guarantee and one floor of 16 MiB
    complaints_of(text, 1017 * MIB)


def test_a_bom_and_windows_lines_are_no_fault(tmp_path):
    """What an editor adds is not the user's mistake, and lines stay right."""
    path = tmp_path / "f.toml"
    path.write_bytes(b'\xef\xbb\xbf[agent]\r\nmode = "apply"\r\n')
    assert load_settings(path, GIB).mode is Mode.APPLY
    path.write_bytes(b'[agent]\r\n\r\nmode = "x"\r\n')
    with pytest.raises(ConfigError, match=r"f\.toml:3"):
        load_settings(path, GIB)


def test_files_that_are_none(tmp_path):
    """Absent, a folder, not UTF-8, too large, nested without end: each is said in its own words."""
    cases = {
        "absent.toml": (Path.exists, "No such file"),
        "folder.toml": (lambda path: path.mkdir(), "Is a directory"),
        "latin.toml": (lambda path: path.write_bytes(b"# a\n# \xe4\n"), "is not UTF-8: byte 0xe4"),
        "large.toml": (lambda path: path.write_bytes(b"#" * (5 << 20)), "larger than 4 MiB"),
        "deep.toml": (lambda path: path.write_text("a = " + "[" * 100_000), "nested too deeply"),
    }
    for name, (make, problem) in cases.items():
        path = tmp_path / name
        make(path)
        with pytest.raises(ConfigError) as caught:
            load_settings(path, GIB)
        assert str(path) in caught.value.place
        assert problem in caught.value.problem, name
        assert caught.value.fix
    with pytest.raises(ConfigError, match=r"latin\.toml:2"):
        load_settings(tmp_path / "latin.toml", GIB)
    with pytest.raises(ConfigError, match="not a file name"):
        load_settings("a\0b", GIB)


def test_a_partition_is_found_again_in_the_file():
    """What a host finds wrong later gets the line of the rule."""
    source = parse_settings("\n" + PARTITION, place="f.toml", total_bytes=GIB)
    assert source.locate("a") == "f.toml:3"
    assert source.locate("a", "match") == "f.toml:4"
    assert source.locate("a", "ceiling") == "f.toml:2"
    assert source.locate("unknown") == "f.toml"
    found = source.place(ConfigError(place="partition a", problem="absent cgroup", fix="create it"), "a")
    assert (found.place, found.problem, found.fix) == ("f.toml:4", "absent cgroup", "create it")
    assert load_source(None, GIB).locate("a") == "the configuration"


def test_the_socket_alone_is_read_without_the_rest(tmp_path):
    """A command that only asks is not stopped by what only the agent must follow."""
    path = tmp_path / "f.toml"
    path.write_text('[agent]\nsocket = "/run/x.sock"\nmode = "nonsense"\n[plan]\nmargin = 7\n')
    assert read_socket(path) == "/run/x.sock"
    path.write_text("")
    assert read_socket(path) == Settings().socket
    path.write_text('[agent]\nsocket = "x"\n')
    with pytest.raises(ConfigError, match="not absolute"):
        read_socket(path)


junk = st.one_of(
    st.none().map(lambda _: "[]"),
    st.integers().map(str),
    st.floats(allow_nan=False).map(lambda number: repr(float(number))),
    st.sampled_from(["true", "nan", "-inf", "{}", "{ a = 1 }", '["1s"]', "[[1]]", "1979-05-27", '"9e99GiB"', '"-1s"']),
    st.from_regex(r'"[0-9.]{1,5} ?(s|ms|MiB|GiB|%|MiB/s|h|d|PiB)?"', fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_characters='"\\\x7f', min_codepoint=32), max_size=6).map(
        lambda text: f'"{text}"'
    ),
)
names = {section: [*table, "other"] for section, table in keys.SECTIONS.items()}


@st.composite
def rough_configurations(draw):
    """Right keys with any values, wrong keys, partitions of all kinds."""
    lines = []
    for section in draw(st.lists(st.sampled_from(sorted(names)), unique=True, max_size=4)):
        lines.append(f"[{section}]")
        given_names = draw(st.lists(st.sampled_from(names[section]), unique=True, max_size=4))
        lines += [f"{name} = {draw(junk)}" for name in given_names]
    for _ in range(draw(st.integers(0, 3))):
        lines.append("[[partition]]")
        given_names = draw(st.lists(st.sampled_from([*keys.PARTITION, "match"]), unique=True, max_size=5))
        lines += [f"{name} = {draw(junk)}" for name in given_names]
    return "\n".join(lines)


@pytest.mark.timeout(60)
@settings(max_examples=150)
@given(text=rough_configurations(), total_bytes=st.integers(1, 1 << 50))
def test_any_values_give_settings_or_complaints_with_lines(text, total_bytes):
    """Nothing else comes out, whatever goes in."""
    try:
        found = load(text, total_bytes)
    except ConfigError as error:
        for complaint in error.complaints or (error,):
            assert re.fullmatch(r"f\.toml:[0-9]+", complaint.place), str(complaint)
            assert complaint.problem
            assert complaint.fix
    else:
        assert sum(partition.guarantee_bytes for partition in found.partitions) <= found.capacity_of(total_bytes)


@pytest.mark.timeout(60)
@settings(max_examples=150)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_gives_settings_or_a_complaint(text):
    """No text makes it fail otherwise."""
    with contextlib.suppress(ConfigError):
        assert load(text).partitions == ()  # no text of 60 characters makes a whole partition


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_followed(path):
    """What we show works, on a host of 4 GiB too."""
    load_settings(path, 4 * GIB)


def test_examples_are_numbered_without_gaps():
    """01, 02, 03 ..."""
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
    assert EXAMPLES


def test_the_example_of_all_keys_shows_the_defaults():
    """It names every key, and following it changes nothing."""
    path = ROOT / "examples/04-all-keys.toml"
    assert load_settings(path, GIB) == Settings()
    text = path.read_text()
    for table in keys.SECTIONS.values():
        for name in table:
            assert re.search(rf"^(?:# )?{name} = ", text, re.MULTILINE), name


def test_every_setting_has_a_key_and_every_key_a_setting():
    """What may be configured is exactly what the settings hold."""
    fields = {field.name for field in dataclasses.fields(Settings)} - {"partitions", *keys.SECTIONS}
    assert {key.field for key in keys.AGENT.values()} == fields - {"capacity_bytes", "capacity_ratio"} | {"capacity"}
    for section in ("observe", "forecast", "plan", "vms"):
        kind = type(getattr(Settings(), section))
        assert {key.field for key in keys.SECTIONS[section].values()} == {
            each.name for each in dataclasses.fields(kind)
        } - {"trust"}


def test_the_page_about_the_configuration_names_every_key():
    """docs/configuration.md has a row for each key, and no row for what is none."""
    text = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", text, re.MULTILINE)
    known = [
        *keys.AGENT,
        *keys.OBSERVE,
        *keys.SENSE,
        *keys.PROFILE,
        *keys.FORECAST,
        *keys.PLAN,
        *keys.VMS,
        *keys.TRUST,
        *keys.PARTITION,
        "match",
        *keys.MATCH,
    ]
    assert sorted(rows) == sorted(known)
