"""Being asked to stop: SIGTERM, as clusters send it before they take a machine away."""

from __future__ import annotations

import signal
import sys
import threading
from types import TracebackType
from typing import Any

from accelerate import PartialState

from mmtransfer.training.setup import end_processes


class Stopped(SystemExit):
    """The run was asked to stop and did so in good order: exit status 0."""

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopSignal:
    """Within `with stop:` a SIGTERM only sets `stop.requested`; the loop looks at it.

    Where the loop answers with `Stopped`, on all processes, they leave together.

    Only the main thread may handle signals: in any other one this does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.depth = 0
        self.previous: Any = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            if self.depth == 0:
                self.previous = signal.signal(signal.SIGTERM, self._note)
            self.depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self.depth -= 1
            if self.depth == 0:
                signal.signal(signal.SIGTERM, self.previous or signal.SIG_DFL)
        if isinstance(error, Stopped) and self.depth == 0:
            if PartialState().is_main_process:
                print(error.message, file=sys.stderr)
            end_processes()

    def _note(self, number: int, frame: Any) -> None:
        self.requested = True
