# SPDX-License-Identifier: Apache-2.0
"""Every key that may be configured, by section: which field of `domain.settings` it fills, and how it is read.

docs/configuration.md explains them to people; a test keeps the two together.
"""

from dataclasses import dataclass

from memsculpt.config import values
from memsculpt.config.values import Read
from memsculpt.domain.settings import Kind, Mode, Sculpt


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration."""

    field: str  # of the section's dataclass in domain.settings
    read: Read


_PAGE = 4096.0

AGENT = {
    "mode": Key("mode", values.choice(Mode)),
    "interval": Key("interval_s", values.duration(0.1, 60.0)),
    "budget": Key("budget_ratio", values.ratio(0.0, 1.0)),
    "capacity": Key("capacity", values.ratio_or_size),  # becomes capacity_ratio or capacity_bytes
    "socket": Key("socket", values.absolute_path('"/run/memsculpt/agent.sock"', is_socket=True)),
    "state": Key("state", values.absolute_path('"/var/lib/memsculpt"')),
    "listen": Key("listen", values.loopback),
}

OBSERVE = {
    "idle_after": Key("idle_after_s", values.duration(0.1, 3600.0)),
    "detail_interval": Key("detail_interval_s", values.duration(0.1, 3600.0)),
}

SENSE = {
    "budget": Key("budget_ratio", values.ratio(0.0, 0.5)),
    "interval": Key("interval_s", values.duration(1.0, 3600.0)),
}

_HOUR_S, _YEAR_S = 3600.0, 366 * 86400.0

PROFILE = {
    "keep": Key("keep", values.flag),
    "flush": Key("flush_s", values.duration(10.0, 600.0)),
    "fine": Key("fine_count", values.count(0, 1000)),
    "keep_1s": Key("keep_1s_s", values.duration(_HOUR_S, _YEAR_S)),
    "keep_10s": Key("keep_10s_s", values.duration(_HOUR_S, _YEAR_S)),
    "keep_1min": Key("keep_1min_s", values.duration(_HOUR_S, 2 * _YEAR_S)),
    "keep_5min": Key("keep_5min_s", values.duration(_HOUR_S, 5 * _YEAR_S)),
    "keep_1h": Key("keep_1h_s", values.duration(_HOUR_S, 20 * _YEAR_S)),
    "size_max": Key("size_max_bytes", values.size(low_bytes=4 << 20)),
}

FORECAST = {
    "levels": Key("levels", values.rising(values.ratio(0.001, 0.9999), '["50%", "90%", "99%"]', most=32)),
    "horizons": Key("horizons_s", values.rising(values.duration(0.1, 3600.0), '["3s", "10s", "1min"]', most=8)),
    "act_horizon": Key("act_horizon_s", values.duration(0.1, 3600.0)),
    "history": Key("history_s", values.duration(10.0, 7 * 86400.0)),
    "refit": Key("refit_count", values.count(0, 1000)),
}

PLAN = {
    "margin": Key("margin_ratio", values.ratio(0.0, 0.5)),
    "floor": Key("floor_bytes", values.size(low_bytes=1 << 20)),
    "page_out": Key("page_out_bytes_per_s", values.rate(low_bytes_per_s=_PAGE)),
    "page_in": Key("page_in_bytes_per_s", values.rate(low_bytes_per_s=_PAGE)),
    "shrink": Key("shrink_bytes_per_s", values.rate(low_bytes_per_s=_PAGE)),
    "swap_fill_max": Key("swap_fill_max_ratio", values.ratio(0.0, 1.0)),
    "pressure_max": Key("pressure_max_ratio", values.ratio(0.0, 1.0)),
    "squeeze_max": Key("squeeze_max_s", values.duration(1.0, 600.0)),
    "min_move": Key("min_move_bytes", values.size(low_bytes=4096)),
    "proactive": Key("proactive_ratio", values.ratio(0.1, 1.0)),
    "prefetch": Key("prefetch", values.flag),
    "sculpt": Key("sculpt", values.choice(Sculpt)),
    "slow_node": Key("slow_node", values.flag),
}

VMS = {
    "discover": Key("discover", values.flag),
    "sockets": Key(
        "sockets",
        values.texts('"/run/vms/*.qmp"', most=64, read_one=values.absolute_path('"/run/vms/*.qmp"')),
    ),
    "libvirt": Key("libvirt", values.libvirt_uri),
    "timeout": Key("timeout_s", values.duration(0.1, 60.0)),
    "balloon": Key("balloon", values.flag),
    "floor": Key("floor_bytes", values.size(low_bytes=32 << 20)),
    "dirty_rate": Key("dirty_every_s", values.often_or_never(10.0, 3600.0)),
}

TRUST = {
    "name": Key("name", values.text('"tenant-a"')),
    "vms": Key("vms", values.texts('"web-*"', most=256)),
}
"""Of `[[trust]]`."""

PARTITION = {
    "name": Key("name", values.text('"cache"')),
    "guarantee": Key("guarantee_bytes", values.size()),
    "ceiling": Key("ceiling_bytes", values.size(low_bytes=1 << 20)),
    "priority": Key("priority", values.number(0.0, 1e6)),
    "kind": Key("kind", values.choice(Kind)),
    "size": Key("size_bytes", values.size(low_bytes=1 << 20)),
    "create": Key("create", values.flag),
    "critical": Key("critical", values.flag),
    "trim": Key("trim", values.flag),
}
"""And `match`, a table of the keys below."""

MATCH = {
    "cgroup": Key("cgroup", values.cgroup_glob),
    "exe": Key("exe", values.text('"*/worker"')),
    "user": Key("user", values.text('"postgres"')),
    "pid": Key("pid", values.pid),
    "vm": Key("vm", values.text('"web-*"')),
    "label": Key("label", values.text('"batch"')),
}

SECTIONS = {
    "agent": AGENT,
    "observe": OBSERVE,
    "sense": SENSE,
    "profile": PROFILE,
    "forecast": FORECAST,
    "plan": PLAN,
    "vms": VMS,
}

TABLES = {"partition": PARTITION, "trust": TRUST}
"""Those that may be there several times."""
