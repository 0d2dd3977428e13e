# SPDX-License-Identifier: Apache-2.0
"""Run one function in a short-lived process, so that what is heavy, or may fail badly, never does so in the agent.

The worker is a fresh interpreter and no fork: the agent has threads, whose locks a fork would copy in any state.
Arguments, result and what it prints travel through memory files (memfd_create(2)), of which RLIMIT_FSIZE bounds the
size: whatever a worker does, it costs its caller no more than that. It is the first to go when memory runs out, and it
goes with the thread that asked (PR_SET_PDEATHSIG).
"""

import ctypes
import importlib
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

from memsculpt.errors import ConfigError, MemsculptError, Refused, Unavailable, UsageError, Vanished, WorkerFailed

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
SAID_BYTES = 1000  # of what it printed, for the error
_TOLD = {one.__name__: one for one in (ConfigError, MemsculptError, Refused, Unavailable, UsageError)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a worker may take."""

    timeout_s: float = 30.0
    memory_bytes: int = 1 << 30  # of address space, of which a Python with numpy takes 300 MiB before it begins
    result_bytes: int = 16 << 20
    nice: int = 19


def run(
    bounds: Bounds, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Return what the function returns; it is called by its name, and what passes is pickled both ways.

    Arrays come back writeable, and `__post_init__` is not called anew (style rule 15): build them again. Safe from any
    thread. Raises what the function raises of our own errors, WorkerFailed for everything else: another exception, a
    crash, no result in time, no memory, a result above its bound. Raises ValueError for a function without such a name.
    """
    name = _name_of(function)
    asked, answered, said = (os.memfd_create(f"memsculpt-worker-{one}") for one in ("asked", "answered", "said"))
    try:
        with open(asked, "wb", closefd=False) as file:
            pickle.dump((sys.path, bounds), file)
            pickle.dump((name, args, kwargs), file)
        os.lseek(asked, 0, os.SEEK_SET)
        code = _wait(asked, answered, said, bounds.timeout_s)
        if code is None:
            raise _failed(name, f"gave no result in {bounds.timeout_s:g} s and was ended", said)
        if code < 0:
            raise _failed(name, f"was killed by {_signal_name(-code)}", said)
        os.lseek(answered, 0, os.SEEK_SET)
        with open(answered, "rb", closefd=False) as file:
            content = file.read()
        if code != 0 or not content:
            raise _failed(name, f"ended with exit code {code} and no result", said)
        kind, value = pickle.loads(content)  # noqa: S301  of our own function, in our own process
    finally:
        for descriptor in (asked, answered, said):
            os.close(descriptor)
    if kind == "result":
        return cast("Result", value)
    raise _raised(name, kind, value)


def _name_of(function: Callable[..., Any]) -> tuple[str, str]:
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or "." in name or getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(f"{module}.{name} cannot be found by its name: hand in a function of a module")
    return module, name


def _wait(asked: int, answered: int, said: int, timeout_s: float) -> int | None:
    """Run the interpreter; return its exit code, None where it had to be ended."""
    worker = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve({answered})"],
        stdin=asked,
        stdout=said,
        stderr=said,
        pass_fds=(answered,),
        start_new_session=True,  # Ctrl-C is the agent's, and what the worker starts ends with it
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)},
    )
    try:
        descriptor = os.pidfd_open(worker.pid)
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return worker.wait() if poller.poll(timeout_s * 1000.0) else None
        finally:
            os.close(descriptor)
    finally:
        with suppress(ProcessLookupError):  # the rule: nothing is left of it
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _failed(name: tuple[str, str], problem: str, said: int) -> WorkerFailed:
    words = os.pread(said, SAID_BYTES, max(0, os.fstat(said).st_size - SAID_BYTES)).decode("utf-8", "backslashreplace")
    last = " | ".join(line for line in words.splitlines()[-3:] if line)
    return WorkerFailed(place=f"worker {name[1]}", problem=problem + (f": {last}" if last else ""))


def _raised(name: tuple[str, str], kind: str, facts: dict[str, str]) -> MemsculptError:
    if kind == Vanished.__name__:
        return Vanished(place=facts["place"])
    if kind in _TOLD:
        return _TOLD[kind](place=facts["place"], problem=facts["problem"], fix=facts["fix"])
    return WorkerFailed(place=f"worker {name[1]}", problem=facts["problem"])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- inside the worker ------------------------------------------------------------------------------------------------


def serve(answered: int) -> None:
    """Read what is asked from stdin, do it, and write the answer; the whole life of a worker."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(0, "rb", closefd=False) as file:
        sys.path[:], bounds = pickle.load(file)  # noqa: S301  from our own parent
        _bind(bounds)
        try:
            answer = _answer(*pickle.load(file))  # noqa: S301  from our own parent
            # Pickled whole before anything is written: half an answer is none.
            content = pickle.dumps(answer)
            if len(content) > bounds.result_bytes:
                content = _problem(f"its result has {len(content)} bytes, {bounds.result_bytes} are the most")
        except MemoryError:
            content = _problem(f"needs more than {bounds.memory_bytes >> 20} MiB")
    with open(answered, "wb", closefd=False) as file:
        file.write(content)


def _bind(bounds: Bounds) -> None:
    os.nice(bounds.nice)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123  /proc
        file.write("1000")
    resource.setrlimit(resource.RLIMIT_AS, (bounds.memory_bytes, bounds.memory_bytes))
    most = bounds.result_bytes + (1 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(name: tuple[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "result", getattr(importlib.import_module(name[0]), name[1])(*args, **kwargs)
    except MemoryError:
        raise
    except MemsculptError as error:
        return type(error).__name__, {"place": error.place, "problem": error.problem, "fix": error.fix}
    except Exception as error:  # noqa: BLE001  the worker's border: it becomes the caller's WorkerFailed
        return "", {"problem": f"{type(error).__name__}: {error}"}


def _problem(words: str) -> bytes:
    return pickle.dumps(("", {"problem": words}))
