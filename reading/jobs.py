"""Several images at once, in order: by processes where they can be forked, or by threads.

Much of what reads a photo is Python, which the threads of a process can't share.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, NamedTuple

import torch

AHEAD = 2  # items that each worker may have been sent and not answered
FORKED = Event()  # is set where this is a forked worker
LARGE_WORK = Lock()


class LeftToFirst(BaseException):
    """A forked worker leaves an item to the process that forked it."""


class End(NamedTuple):
    """One end of a connection between two threads, like that of a pipe between processes."""

    send: Callable
    recv: Callable


def work_ahead(
    work: Callable, items: Iterable, jobs: int, forked: bool = False
) -> Iterator[tuple[Any, Any, Exception | None]]:
    """Yield each item, in order, with what comes of it: an answer, or an error.

    So many workers as there are jobs go a few items ahead; a single item needs none. They are
    threads, or, if asked for and where Linux can fork them, processes: to these an item should be
    small, such as a path. Raises ChildProcessError if one of them dies.
    """
    items = iter(items)
    first = list(itertools.islice(items, 2)) if jobs > 1 else []
    items = itertools.chain(first, items)
    if len(first) < 2:
        yield from ((item, *attempt(work, item)) for item in items)
        return
    n_threads, ends, waiting, end_of_list = torch.get_num_threads(), [], deque(), None
    torch.set_num_threads(1)  # of each worker
    try:
        for i in itertools.count():
            try:
                item = next(items)
            except (StopIteration, OSError) as error:
                end_of_list = error
                break
            if i < jobs:
                ends.append(start_worker(work, forked and sys.platform == "linux"))
            ends[i % jobs].send([item])
            waiting.append((work, item, ends[i % jobs]))
            if len(waiting) == AHEAD * jobs:
                yield receive(*waiting.popleft())
        yield from itertools.starmap(receive, waiting)
        if isinstance(end_of_list, OSError):  # what a list named before is read all the same
            raise end_of_list
    finally:
        for end in ends:
            with contextlib.suppress(OSError):  # it may be dead
                end.send([])
        torch.set_num_threads(n_threads)


def attempt(work: Callable, item: Any) -> tuple[Any, BaseException | None]:
    """Return what comes of an item, and the error if that is one."""
    try:
        return work(item), None
    except (Exception, LeftToFirst) as error:
        return None, error


def start_worker(work: Callable, forked: bool) -> Any:
    """Start a process or a thread, and return our end of the connection to it."""
    if forked:
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        fork.Process(target=serve_forked, args=(work, ours, theirs), daemon=True).start()
        theirs.close()  # so that it shows here if the process dies
        return ours
    questions, answers = SimpleQueue(), SimpleQueue()  # no KeyboardInterrupt breaks them
    Thread(target=serve, args=(work, End(answers.put, questions.get)), daemon=True).start()
    return End(questions.put, answers.get)


def serve(work: Callable, end: Any) -> None:
    """Answer items until there are no more."""
    while question := end.recv():
        end.send(attempt(work, *question))


def serve_forked(work: Callable, ours: Any, theirs: Any) -> None:
    """Answer items in a process of its own, which ends with the one that forked it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one heeds it
    ours.close()  # so that it shows here if the first one dies
    FORKED.set()
    with contextlib.suppress(EOFError, OSError):
        serve(work, theirs)


def receive(work: Callable, item: Any, end: Any) -> tuple[Any, Any, Exception | None]:
    """Wait for what comes of an item."""
    try:
        answer, error = end.recv()
    except (EOFError, OSError):
        raise ChildProcessError(
            f"{item}: the process that read it was ended; try --jobs 1"
        ) from None
    return item, *(attempt(work, item) if isinstance(error, LeftToFirst) else (answer, error))


@contextlib.contextmanager
def large_work() -> Iterator[None]:
    """Let one at a time do what takes much memory: a thread of the first process."""
    if FORKED.is_set():
        raise LeftToFirst
    with LARGE_WORK:
        yield


@functools.cache
def survive_forks() -> None:
    """Let child processes made by fork compute on one thread.

    They have the parent's pool of threads without its threads, and would wait for them forever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
