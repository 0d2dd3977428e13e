# SPDX-License-Identifier: Apache-2.0
"""What stands in for fitting in workers: functions of a module, because a worker finds them by their names."""

import os
import signal

from memsculpt.forecast.longterm import Choice
from memsculpt.forecast.longterm.fitted import Arima


def last_value(history, gate):
    return Choice(
        made_step=history.step,
        begin_step=history.step - len(history.values) + 1,
        model=Arima(ar=(), ma=(), differences=1, constant=0.0),
        trust=1.0,
        loss=0.5,
        own_loss=1.0,
        windows_count=20,
    )


def crash(history, gate):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(history, gate):
    while True:
        signal.pause()


def eat(history, gate):
    return bytearray(1 << 30)


def break_down(history, gate):
    raise LookupError("a bug")
