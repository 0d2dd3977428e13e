# SPDX-License-Identifier: Apache-2.0
"""Where socket and state lie, for root and for everybody else."""

import os

import pytest

from memsculpt.domain.settings import Settings
from memsculpt.doors import places
from memsculpt.errors import ConfigError, Unavailable


def test_root_has_the_places_of_the_configuration():
    """Nothing is moved."""
    settings = Settings(socket="/run/elsewhere.sock")
    assert places.placed(settings, uid=0, environment={}) is settings


@pytest.mark.parametrize(
    ("environment", "socket", "state"),
    [
        (
            {"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/a"},
            "/run/user/7/memsculpt/agent.sock",
            "/home/a/.local/state/memsculpt",
        ),
        ({"HOME": "/home/a"}, "/tmp/memsculpt-7/agent.sock", "/home/a/.local/state/memsculpt"),
        ({"XDG_STATE_HOME": "/s", "HOME": "/home/a"}, "/tmp/memsculpt-7/agent.sock", "/s/memsculpt"),
    ],
)
def test_a_user_has_places_of_his_own(environment, socket, state):
    """Where root's defaults stand; what the configuration names stays."""
    placed = places.placed(Settings(), uid=7, environment=environment)
    assert (placed.socket, placed.state) == (socket, state)
    named = Settings(socket="/a/b.sock", state="/c")
    assert places.placed(named, uid=7, environment=environment) == named


def test_the_socket_comes_from_the_option_then_from_the_file(tmp_path):
    """A mistake elsewhere in the file keeps nobody from asking."""
    config = tmp_path / "memsculpt.toml"
    config.write_text('[agent]\nsocket = "/a/b.sock"\ninterval = "1 parsec"\n')
    assert places.socket_to_ask("/named.sock", str(config)) == "/named.sock"
    assert places.socket_to_ask(None, str(config)) == "/a/b.sock"
    with pytest.raises(ConfigError, match="cannot be read"):
        places.socket_to_ask(None, str(tmp_path / "absent.toml"))


def test_the_sockets_folder_is_made_for_its_owner(tmp_path):
    """Only root's is open for others to look into; a file in its place is refused."""
    folder = tmp_path / "a/b"
    places.make_private(folder)
    assert folder.is_dir()
    if os.geteuid() != 0:
        assert folder.stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="--socket"):
        places.make_private(tmp_path / "file")


def test_a_folder_behind_a_link_is_not_trusted(tmp_path):
    """In /tmp, anybody could have laid the link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(Unavailable, match="not a folder of this user"):
        places.make_private(tmp_path / "link")


def test_the_machine_lock_can_be_another():
    """For tests that run beside an agent."""
    assert places.machine_lock({"MEMSCULPT_MACHINE_LOCK": "/a/lock"}) == places.Path("/a/lock")
    assert places.machine_lock({}) == (places.MACHINE_LOCK if os.geteuid() == 0 else None)
