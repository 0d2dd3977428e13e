# SPDX-License-Identifier: Apache-2.0
"""Limits that expire by themselves: a guardian outlives the agent and undoes what it left.

The guardian is /bin/sh blocked in a read (no Python: some 2 MiB, no wake-ups but for the heartbeats), in a session of
its own, on the read end of a pipe whose only write end the agent holds.

    end of file      the agent died: wait the lease out (a service manager may start it anew, and that one restores),
                     then run `memsculpt restore`, which ends at once when another agent owns the journal by then
    no heartbeat     the agent hangs, or was stopped, for a whole lease: it can no longer lift a squeeze. Kill it (its
                     pipe is still open, so the pid is its own), wait for the end of file, then restore
    "end"            the agent ends normally and has restored: the guardian ends too

From its first moment it ignores SIGTERM, SIGINT and SIGHUP, because whoever stops the agent's whole group (Ctrl-C,
systemd) stops the agent first and may kill it before it has restored. What it does is written to `guardian.log` in the
state folder.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from memsculpt.errors import Unavailable

LOG_NAME = "guardian.log"
SHORTEST_S = 15.0

_DISMISSED_WITHIN_S = 2.0
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

# $1 lease in seconds, $2 the agent's pid, the rest is the command that restores. `timeout` runs the read in a shell of
# its own, which reads byte by byte, so a heartbeat more or less in the pipe does not matter. POSIX sh has no `read -t`.
_GUARDIAN = """
trap '' TERM INT HUP
lease=$1 agent=$2
shift 2
while :; do
    timeout -s KILL "$lease" /bin/sh -c 'IFS= read -r word || exit 11; [ "$word" != end ] || exit 10'
    case $? in
    0) ;;
    10) exit 0 ;;
    11) echo "the agent (pid $agent) is gone without having restored; restoring in $lease s"
        sleep "$lease"
        break ;;
    124|137) echo "the agent (pid $agent) has not renewed its lease for $lease s: killing it and restoring"
        kill -KILL "$agent"
        cat >/dev/null
        break ;;
    *) echo "no usable timeout(1): only the death of the agent is noticed"
        while IFS= read -r word; do [ "$word" != end ] || exit 0; done
        sleep "$lease"
        break ;;
    esac
done
exec "$@" </dev/null
"""


def lease_for(interval_s: float) -> float:
    """Return how long a lease runs for an agent that ticks every `interval_s`: four ticks may be missed."""
    return max(SHORTEST_S, 4.0 * interval_s)


def restore_command(state_dir: str | Path) -> tuple[str, ...]:
    """Return the command that undoes what the journal in `state_dir` names."""
    return (sys.executable, "-m", "memsculpt", "restore", "--state", os.path.abspath(state_dir))


class Lease:
    """The agent's end of the pipe. Renew it each tick; end it after restoring."""

    def __init__(self, *, state_dir: Path, lease_s: float, command: Sequence[str]) -> None:
        """Hold nothing yet; `start` is the way to get one."""
        self._state_dir = state_dir
        self._lease_s = lease_s
        self._command = tuple(command)
        self._guardian: subprocess.Popen[bytes] | None = None
        self._renewed_at_s = 0.0
        self.replaced_count = 0  # guardians that went away before us; each was replaced

    @classmethod
    def start(
        cls, state_dir: str | Path, *, lease_s: float, now_s: float, command: Sequence[str] | None = None
    ) -> "Lease":
        """Start the guardian; call it before the first change to the host.

        Raises Unavailable when there is no /bin/sh or the log cannot be made: then nothing may be changed.
        """
        path = Path(state_dir)
        lease = cls(state_dir=path, lease_s=lease_s, command=command or restore_command(path))
        lease._spawn(now_s)
        return lease

    @property
    def pid(self) -> int | None:
        """Return the guardian's pid, None when it has ended."""
        return None if self._guardian is None else self._guardian.pid

    def renew(self, now_s: float) -> None:
        """Say that the agent is alive; call it every tick, it writes only when a quarter of the lease has passed.

        A guardian that went away (killed, out of memory) is replaced. Raises Unavailable when that is impossible.
        """
        if now_s - self._renewed_at_s < self._lease_s / 4 and self._is_watched():
            return
        if not self._say(b".\n"):
            self.replaced_count += 1
            self._let_go()
            self._spawn(now_s)
        self._renewed_at_s = now_s

    def end(self) -> None:
        """Dismiss the guardian; call it after `restore`, never before."""
        self._say(b"end\n")
        self._let_go()

    def _is_watched(self) -> bool:
        return self._guardian is not None and self._guardian.poll() is None

    def _say(self, word: bytes) -> bool:
        if self._guardian is None or self._guardian.stdin is None or not self._is_watched():
            return False
        try:
            os.write(self._guardian.stdin.fileno(), word)
        except BlockingIOError:
            pass  # the pipe is full of heartbeats that it did not read yet (it is stopped); it will find them
        except BrokenPipeError:
            return False
        return True

    def _let_go(self) -> None:
        if self._guardian is None:
            return
        if self._guardian.stdin is not None:
            self._guardian.stdin.close()
        try:
            self._guardian.wait(timeout=_DISMISSED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._guardian.kill()  # it is stopped, or would restore behind our back
            self._guardian.wait()
        self._guardian = None

    def _spawn(self, now_s: float) -> None:
        arguments = [f"{self._lease_s:g}", str(os.getpid()), *self._command]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            log = os.open(self._state_dir / LOG_NAME, flags, 0o600)
            # A child starts with its parent's mask: until its shell has come to the trap, they are blocked.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            try:
                self._guardian = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARDIAN, "memsculpt-guardian", *arguments],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    bufsize=0,
                    start_new_session=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                os.close(log)
        except OSError as error:
            raise Unavailable(
                place="the guardian of the lease",
                problem=f"cannot be started ({error.strerror}), and without it limits would outlive a killed agent",
                fix="install a POSIX /bin/sh and let memsculpt write its state folder, or run with --observe",
            ) from error
        if self._guardian.stdin is not None:
            os.set_blocking(self._guardian.stdin.fileno(), False)
        self._renewed_at_s = now_s
