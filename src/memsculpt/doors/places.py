# SPDX-License-Identifier: Apache-2.0
"""Where an agent's socket and state lie: the configuration's places, or a user's own without root.

Standard library only: every light command comes through here.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from memsculpt.domain.settings import Settings
from memsculpt.errors import ConfigError, Unavailable

SYSTEM_CONFIG = Path("/etc/memsculpt/memsculpt.toml")
SYSTEM_SOCKET = "/run/memsculpt/agent.sock"
DEFAULT_LISTEN = "127.0.0.1:8472"
MACHINE_LOCK = Path("/run/memsculpt/agent.lock")
SHARING_GROUP = Path("/run/memsculpt/sharing")


def user_socket(uid: int, environment: Mapping[str, str]) -> str:
    """Return the socket of an agent that runs without root."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    folder = f"{runtime}/memsculpt" if runtime else f"/tmp/memsculpt-{uid}"  # noqa: S108  checked by make_private
    return f"{folder}/agent.sock"


def user_state(environment: Mapping[str, str]) -> str:
    """Return the state folder of an agent that runs without root."""
    home = environment.get("XDG_STATE_HOME") or os.path.join(environment.get("HOME", "/nonexistent"), ".local/state")
    return f"{home}/memsculpt"


def placed(settings: Settings, *, uid: int | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings with a user's own places where root's defaults stand and we are not root."""
    uid = os.geteuid() if uid is None else uid
    environment = os.environ if environment is None else environment
    defaults = Settings()
    if uid == 0:
        return settings
    if settings.socket == defaults.socket:
        settings = replace(settings, socket=user_socket(uid, environment))
    if settings.state == defaults.state:
        settings = replace(settings, state=user_state(environment))
    return settings


def machine_lock(environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the file that keeps a second agent off this machine; None where this user may not make it.

    MEMSCULPT_MACHINE_LOCK names another one, so that tests run beside an agent.
    """
    environment = os.environ if environment is None else environment
    named = environment.get("MEMSCULPT_MACHINE_LOCK")
    if named:
        return Path(named)
    return MACHINE_LOCK if os.geteuid() == 0 else None


def config_path(named: str | None) -> Path | None:
    """Return the configuration to read: the one that was named, or the system's where there is one."""
    if named is not None:
        return Path(named)
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() else None


def socket_to_ask(named: str | None, config: str | None) -> str:
    """Return the socket at which to look for the agent.

    Raises ConfigError when the configuration cannot be followed.
    """
    if named is not None:
        return named
    path = config_path(config)
    if path is not None and os.access(path, os.R_OK):
        from memsculpt.config import read_socket  # late: most calls need no configuration

        return placed(Settings(socket=read_socket(path))).socket
    if config is not None:
        raise ConfigError(
            place=config, problem="cannot be read", fix="name a file that is there, or the socket with --socket"
        )
    if os.geteuid() == 0:
        return SYSTEM_SOCKET
    own = user_socket(os.geteuid(), os.environ)
    return own if _is_our_socket(own) else SYSTEM_SOCKET


def make_private(folder: Path) -> None:
    """Make the socket's folder, or check that the one in a place where all may write is ours alone.

    Raises Unavailable when somebody else owns it or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise Unavailable(
            place=str(folder),
            problem=f"the folder of the socket cannot be made: {error.strerror}",
            fix="name another socket: --socket PATH",
        ) from error
    # /tmp: a folder that another user prepared would let him swap the socket for his own.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {0, os.geteuid()}:
        raise Unavailable(
            place=str(folder),
            problem="is not a folder of this user",
            fix="name another socket: --socket PATH",
        )


def _is_our_socket(path: str) -> bool:
    """Tell whether this user's agent made the socket: in /tmp, another user could lay out a false one."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()
