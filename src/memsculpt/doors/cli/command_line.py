# SPDX-License-Identifier: Apache-2.0
"""Find the command, run it, and turn what went wrong into words and an exit code.

0 done, 1 failed, 2 wrong usage or configuration, 3 not possible on this machine. Only the module of the command that
was asked for is imported; commands from elsewhere (entry points of the group `memsculpt.commands`) are looked up only
when the word is none of ours.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from memsculpt import __version__
from memsculpt.errors import ConfigError, MemsculptError, UsageError

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  argparse gives it no public name

GROUP = "memsculpt.commands"
COMMANDS = (
    *(
        "doctor",
        "run",
        "heat",
        "growth",
        "profile",
        "status",
        "partitions",
        "plan",
        "explain",
        "request",
        "restore",
        "exec",
    ),
    *("pools", "pool-stats", "sculpt", "vms"),
    *("backtest", "train"),
)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_DESCRIPTION = "Keeps a machine's memory ahead of its workloads."
_EPILOG = """\
examples:
  memsculpt doctor                      what this machine offers
  memsculpt run --duration 20s          observe for a while, change nothing
  memsculpt status --json | jq .mode    ask a running agent

exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not possible on this machine (the reason is said)
"""


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one of our errors, so that it has a fix and a JSON form."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint."""
        raise UsageError(place=self.prog, problem=message, fix=f"see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
    except MemsculptError as error:
        return _say(error, as_json="--json" in _own_words(words))
    except BrokenPipeError:
        # The reader went away (`| head`). Point stdout at nothing, or Python complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _run(words: list[str]) -> int:
    parser = _make_parser(words[0] if words else "")
    try:
        parsed = parser.parse_args(words)
    except SystemExit as done:  # --help and --version have printed what they have to say
        return done.code if isinstance(done.code, int) else 0
    chosen: Callable[[argparse.Namespace], int] = parsed.run
    return chosen(parsed)


def _make_parser(word: str) -> Parser:
    parser = Parser(
        prog="memsculpt",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"memsculpt {__version__}")
    subparsers: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in (word,) if word in COMMANDS else COMMANDS:
        _command(f"memsculpt.doors.cli.{name.replace('-', '_')}")(subparsers)
    if word not in COMMANDS:
        _add_foreign(subparsers)
    return parser


def _command(module: str) -> Callable[[Subparsers], None]:
    return importlib.import_module(module).add_command


def _add_foreign(subparsers: Subparsers) -> None:
    from importlib.metadata import entry_points  # 20 ms that `status` need not pay

    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name in COMMANDS:
            raise UsageError(
                place=f"entry point {point.value}",
                problem=f"wants to be `{point.name}`, which is a command of memsculpt's own",
                fix="uninstall that package, or have it choose another name",
            )
        point.load()(subparsers)


def _own_words(words: list[str]) -> list[str]:
    """Return the words that are ours: what follows `--` belongs to the command that `exec` starts."""
    return words[: words.index("--")] if "--" in words else words


def _say(error: MemsculptError, *, as_json: bool) -> int:
    if as_json:
        said: dict[str, Any] = dict(_facts(error))
        if isinstance(error, ConfigError) and error.complaints:
            said["complaints"] = [_facts(one) for one in error.complaints]
        print(json.dumps({"error": said}), flush=True)
    print(f"memsculpt: {error}", file=sys.stderr)
    return error.exit_code


def _facts(error: MemsculptError) -> dict[str, str]:
    return {"place": error.place, "problem": error.problem, "fix": error.fix}
