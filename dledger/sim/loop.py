"""An asyncio event loop on virtual time: no socket, no thread, no clock; the same seed, the same run.

The code under test is ordinary asyncio code (the driver, the client's pipeline); it cannot tell this loop
from a real one, except that waiting costs nothing: when nothing is ready, the time jumps to the next timer.

Order. Within one simulated process callbacks run exactly as asyncio promises, ``call_soon`` first in first
out and timers by their time, so a run never shows a bug that the real loop forbids. What a real machine
leaves open is open here too, decided by the seed: which *process* goes first when several have something to
do at the same instant (in a share of the seeds strictly first come, first served), when the network and the
disks answer, and for how long a process is not scheduled at all (`SimLoop.pause`).

Processes. Every callback belongs to the process in whose context it was scheduled (`contextvars`, which
asyncio hands on by itself). `SimLoop.kill` is kill -9: no callback of that process runs any more, no
``finally`` block, no cancellation; its suspended coroutines are kept until `SimLoop.close`, because
collecting them would run their cleanup.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import signal
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from random import Random
from types import FrameType
from typing import Any, Final, NoReturn, TypeVar, cast

__all__ = ["Process", "SimDeadlockError", "SimLivelockError", "SimLoop", "current_process", "new_loop"]

_T = TypeVar("_T")

_START_TIME_S: Final = 1000.0
"""Not 0, so that code which takes 0 for "never" shows itself."""

_LIVELOCK_CALLBACKS: Final = 200_000
"""Callbacks at one instant of virtual time before the run is given up: somebody spins."""


class SimDeadlockError(Exception):
    """Everything waits and nothing is scheduled: the run can never go on."""


class SimLivelockError(Exception):
    """Callbacks beget callbacks without the time ever moving."""


class Process:
    """A simulated operating system process: what can be paused, resumed and killed as a whole.

    ``observer``, if set, is called after each callback of the process; what it raises ends the run.
    """

    __slots__ = ("alive", "context", "name", "observer", "parked", "paused", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.parked: list[_SimHandle] = []
        self.observer: Callable[[], None] | None = None
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.Context()
        self.context.run(_PROCESS.set, self)

    def __repr__(self) -> str:
        state = "paused" if self.paused else "alive" if self.alive else "dead"
        return f"<Process {self.name} {state}>"

    def run(self, function: Callable[..., _T], *args: Any) -> _T:  # noqa: ANN401 - passes on what it is given
        """Call ``function`` at once as if this process did (what it schedules belongs to this process)."""
        return self.context.copy().run(function, *args)


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated process", default=None)


def current_process() -> Process | None:
    """Return the process on whose behalf the running callback runs; None for the simulator itself."""
    return _PROCESS.get()


class _SimHandle(asyncio.Handle):
    __slots__ = ("process",)

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        if context is None:
            context = contextvars.copy_context()
        # What `asyncio.Handle` does, without its debug tracebacks: half of all time is spent on making handles.
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self.process: Process | None = context.get(_PROCESS)


class _SimTimer(asyncio.TimerHandle):
    __slots__ = ("process",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        if context is None:
            context = contextvars.copy_context()
        super().__init__(when, callback, args, loop, context)
        self.process: Process | None = context.get(_PROCESS)


class SimLoop(asyncio.AbstractEventLoop):
    """The loop. ``rng`` decides what a real machine leaves open; ``shuffle`` False: first come, first served.

    Attributes:
        unhandled: what asyncio would have reported through its exception handler, as (process name, context).
        callbacks: how many callbacks have run.
    """

    def __init__(self, rng: Random, *, shuffle: bool = True) -> None:
        self._rng = rng
        self._shuffle = shuffle
        self._now = _START_TIME_S
        self._ready: deque[_SimHandle | _SimTimer] = deque()
        self._timers: list[tuple[float, int, _SimTimer]] = []
        self._timer_number = 0
        self._cancelled_timers = 0
        self._running = False
        self._stopping = False
        self._closed = False
        self._debug = False
        self._exception_handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._processes: list[Process] = []
        self._graves: list[asyncio.Task[Any]] = []
        self._instant_callbacks = 0
        self._alarm: BaseException | None = None
        self.unhandled: list[tuple[str, dict[str, Any]]] = []
        self.callbacks = 0

    # --- time and scheduling ---

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,  # noqa: ANN401 - asyncio's own signature
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = _SimHandle(callback, args, self, context)
        if not self._closed:  # what dying coroutines schedule while the loop is being closed goes nowhere
            self._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,  # noqa: ANN401
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = _SimTimer(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]  # asyncio's own protocol with TimerHandle.cancel
        if not self._closed:
            self._timer_number += 1
            heapq.heappush(self._timers, (when, self._timer_number, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by `asyncio.TimerHandle.cancel`: sweep when most of the heap is dead wood."""
        self._cancelled_timers += 1
        if self._cancelled_timers > 256 and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [item for item in self._timers if not item[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    # --- futures and tasks ---

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **kwargs: Any,  # noqa: ANN401 - later Pythons add eager_start
    ) -> asyncio.Task[_T]:
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        task: asyncio.Task[_T] = asyncio.Task(cast(Any, coro), loop=self, name=name, context=context, **kwargs)
        tasks = self._tasks if process is None else process.tasks
        tasks.append(task)
        if len(tasks) > 64 and len(tasks) & 63 == 0:
            tasks[:] = [t for t in tasks if not t.done()]
        return task

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ANN401
        func: Callable[..., Any],
        *args: Any,  # noqa: ANN401
    ) -> NoReturn:
        """Refused: a thread would make the run depend on the machine. Use the simulated executor."""
        raise RuntimeError("the simulated loop runs no threads: give the code a disk executor instead")

    # --- running ---

    def run_until_complete(self, future: Any) -> Any:  # noqa: ANN401 - asyncio's own signature
        """Run until ``future`` is done and return its result.

        Raises:
            SimDeadlockError: nothing is scheduled and ``future`` is not done.
        """
        task = asyncio.ensure_future(future, loop=self)
        task.add_done_callback(self._stop_when_done)
        try:
            self.run_forever()
        finally:
            task.remove_done_callback(self._stop_when_done)
        if not task.done():
            raise SimDeadlockError("the loop was stopped before the future was done")
        return task.result()

    def _stop_when_done(self, _future: object) -> None:
        self._stopping = True

    def run_forever(self) -> None:
        """Run until `stop`; raises `SimDeadlockError` when nothing is left to do."""
        if self._closed:
            raise RuntimeError("the loop is closed")
        if self._running or asyncio._get_running_loop() is not None:
            raise RuntimeError("a loop is running already")
        hooks = sys.get_asyncgen_hooks()
        self._running = True
        self._stopping = False
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(finalizer=self._finalize_asyncgen)
        try:
            with _alarms_told(self._on_alarm):
                while not self._stopping:
                    self._run_once()
        finally:
            self._running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _on_alarm(self, error: BaseException) -> None:
        self._alarm = error

    def _finalize_asyncgen(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._closed:
            self.call_soon(self.create_task, generator.aclose())

    def _run_once(self) -> None:
        ready = self._ready
        if not ready:
            self._advance()
        count = len(ready)
        if count > 1 and self._shuffle:
            self._order_processes()
        self._instant_callbacks += count
        if self._instant_callbacks > _LIVELOCK_CALLBACKS:
            raise SimLivelockError(f"{self._instant_callbacks} callbacks at {self._now:.6f} s, last: {ready[0]!r}")
        for _ in range(count):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle.process
            if process is not None and (process.paused or not process.alive):
                if process.alive:
                    process.parked.append(cast(_SimHandle, handle))
                continue
            try:
                handle._context.run(handle._callback, *handle._args)  # type: ignore[union-attr]
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                if process is None or process.alive:  # of what ended its process nobody is told
                    self.call_exception_handler(
                        {"message": f"Exception in {handle!r}", "exception": error, "handle": handle}
                    )
            if process is not None and process.observer is not None:
                process.observer()
        self.callbacks += count
        if self._alarm is not None:
            raise self._alarm

    def _advance(self) -> None:
        """Move the time to the next timer and make ready all that is due then."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._cancelled_timers -= 1
        if not timers:
            raise SimDeadlockError(f"nothing is scheduled any more at {self._now:.6f} s")
        self._now = max(self._now, timers[0][0])
        self._instant_callbacks = 0
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]
            if timer.cancelled():
                self._cancelled_timers -= 1
            else:
                self._ready.append(timer)

    def _order_processes(self) -> None:
        """Let the seed decide which process goes first; the order within each stays."""
        groups: dict[Process | None, list[_SimHandle | _SimTimer]] = {}
        for handle in self._ready:
            groups.setdefault(handle.process, []).append(handle)
        if len(groups) > 1:
            order = list(groups.values())
            self._rng.shuffle(order)
            self._ready.clear()
            for group in order:
                self._ready.extend(group)

    def stop(self) -> None:
        self._stopping = True

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End the run: drop what is scheduled and close every coroutine that never ended, quietly."""
        if self._closed:
            return
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        graves = self._graves + self._tasks
        for process in self._processes:
            graves.extend(process.tasks)
            process.parked.clear()
        self._graves, self._tasks, self._processes = [], [], []
        for task in graves:
            self._bury(task)

    def bury(self, process: Process) -> None:
        """Give the tasks of a process that has ended over to `close`."""
        self._graves.extend(task for task in process.tasks if not task.done())
        process.tasks.clear()

    @staticmethod
    def _bury(task: asyncio.Task[Any]) -> None:
        """End a coroutine that nobody will resume, so that collecting it later reports nothing."""
        if task.done():
            if not task.cancelled():
                task.exception()  # retrieved: no report at collection
            return
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine = task.get_coro()
        try:
            if coroutine is not None:
                coroutine.close()
        except BaseException:  # dying code may do anything; nobody is left to tell
            pass

    # --- processes ---

    def process(self, name: str) -> Process:
        """Return a new process; what runs in its context can be paused and killed as a whole."""
        process = Process(name)
        self._processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        """kill -9: nothing of ``process`` runs ever again. Returns at once."""
        process.alive = False
        process.parked.clear()
        self.bury(process)

    def pause(self, process: Process) -> None:
        """SIGSTOP: what becomes due waits, in order."""
        process.paused = True

    def resume(self, process: Process) -> None:
        """SIGCONT: all that became due meanwhile runs now, in the order in which it became due."""
        process.paused = False
        if process.alive:
            self._ready.extend(process.parked)
        process.parked.clear()

    # --- what asyncio asks of a loop ---

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Collect in `unhandled` what asyncio reports; the run's verdict looks there."""
        if self._closed:
            return
        if self._exception_handler is not None:
            self._exception_handler(self, context)
            return
        handle = context.get("handle")
        process = handle.process if isinstance(handle, _SimHandle | _SimTimer) else _PROCESS.get()
        if process is not None and not process.alive:
            return  # the last gasp of a process that was killed in the middle of a callback
        self.unhandled.append((process.name if process is not None else "simulator", context))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def set_exception_handler(
        self, handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        self._exception_handler = handler

    def get_exception_handler(self) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None:
        return self._exception_handler

    def get_debug(self) -> bool:
        return self._debug

    def set_debug(self, enabled: bool) -> None:
        self._debug = enabled

    def get_task_factory(self) -> None:
        return None

    def set_task_factory(self, factory: object) -> None:
        if factory is not None:
            raise RuntimeError("the simulated loop makes its own tasks")

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: unfinished generators are closed as they are collected."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there is none."""


@contextlib.contextmanager
def _alarms_told(tell: Callable[[BaseException], None]) -> Iterator[None]:
    """Hand what a handler of SIGALRM raises to ``tell`` as well.

    A test's time limit is such a handler. Its exception strikes whatever code is running, mostly a task, which keeps
    it as its result: the run would go on as if nothing had been said.
    """
    handler = signal.getsignal(signal.SIGALRM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            tell(error)
            raise

    signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)


def new_loop(rng: Random, *, shuffle: bool = True) -> SimLoop:
    """Return a new loop. (What asyncio's abstract loop has for sockets, signals and child processes stays unmade.)"""
    return SimLoop(rng, shuffle=shuffle)  # type: ignore[abstract]
