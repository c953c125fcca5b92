"""Compile kernels before work begins, in processes that Ctrl-C ends at once.

A worker lets its piece of work come to its end when a run is interrupted, and the compiler holds
Python's signals back: what compiles is to be neither a worker nor the process that is asked.
"""

import gc
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.context import SpawnProcess

from pipelines.shards.workers import interrupts_held, prepare_worker


def compile_kernels(pending: Callable[[], Sequence[Callable[[], None]]]) -> None:
    """Compile the kernels that have not been compiled on this machine; show the time on stderr.

    What fails here is no error: the kernels are compiled where they are needed, which says what is
    wrong.

    Args:
        pending: says which parts have not been compiled, as `fractals.warming.pending` and
            `pixmix.warming.pending` do.

    Raises:
        KeyboardInterrupt: on Ctrl-C, at once; what is compiled so far is kept.
    """
    parts = pending()
    if not parts:
        return
    from pixmix.compiling.waiting import Timer

    context = multiprocessing.get_context("spawn")
    timer = Timer()
    started: list[SpawnProcess] = []
    try:
        for part in parts:
            process = context.Process(target=_compile, args=(part,), daemon=True)
            try:
                with interrupts_held():
                    process.start()
            except (OSError, RuntimeError):
                break  # No more processes are allowed.
            started.append(process)
        while any(process.is_alive() for process in started):
            timer.show()
            time.sleep(0.05)
        timer.end(time.monotonic())
    finally:
        for process in started:
            process.kill()


def _compile(part: Callable[[], None]) -> None:
    prepare_worker()
    # A tenth of the time; the process ends before its memory matters.
    gc.disable()
    with suppress(Exception):
        part()
