"""Each other library in a process of its own: thread pools in one process spin on, and steal, each other's cores.

The parent sends the data of a task, asks each contender in turn to time a few calls, and gets milliseconds back; only
one process computes at a time. What travels between them is not timed.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from pyq.benchmark import Check, Contender
from pyq.timing import Sample
from pyq.workloads import ConvData, MatMulData


class Worker:
    """A process that runs the contenders of one module of `bench.peers`."""

    def __init__(self, library: str, threads: int) -> None:
        self.library = library
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, library, threads), daemon=True)
        self._process.start()
        theirs.close()

    def prepare(self, shape: Any, data: MatMulData | ConvData) -> list[RemoteContender]:
        """The library's contenders for a task, which replace those before; none, and a warning, where it fails."""
        try:
            names = self.ask("prepare", shape, data)
        except WorkerError as error:
            warnings.warn(f"{shape.label} is left out: {error}", stacklevel=2)
            return []
        return [RemoteContender(name, self, index) for index, name in enumerate(names)]

    def ask(self, *request: Any) -> Any:
        """Have a method of `Contenders` called; WorkerError when it raises, or the process has died."""
        try:
            self._connection.send(request)
            failed, answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerError(f"{self.library}: its process has died") from error
        if failed:
            raise WorkerError(f"{self.library}: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


class WorkerError(RuntimeError):
    """Something went wrong in a library's process."""


@contextmanager
def workers(libraries: Sequence[str], threads: int) -> Iterator[list[Worker]]:
    """A process for each of `libraries`, with as many threads each, while the block runs."""
    with ExitStack() as stack:
        started = [Worker(library, threads) for library in libraries]
        for worker in started:
            stack.callback(worker.close)
        yield started


@dataclass(frozen=True)
class RemoteContender:
    """A contender in a worker's process: the one of its task with this index."""

    name: str
    worker: Worker
    index: int
    required: bool = False

    def check(self) -> Check:
        """See `pyq.benchmark.Competitor`."""
        check: Check = self.worker.ask("check", self.index)
        return check

    def sample(self, repeats: int) -> Sample:
        """See `pyq.benchmark.Competitor`."""
        taken: Sample = self.worker.ask("sample", self.index, repeats)
        return taken


class Contenders:
    """What a worker's process answers with: a method for each request."""

    def __init__(self, library: str, threads: int) -> None:
        self._module = import_module(f"bench.peers.{library}")
        self._threads = threads
        self._contenders: list[Contender] = []

    def prepare(self, shape: Any, data: MatMulData | ConvData) -> list[str]:
        """Make the contenders of a task; returns their names."""
        kind = "matmul" if isinstance(data, MatMulData) else "conv"
        make = getattr(self._module, kind, None)
        self._contenders = make(shape, data, self._threads) if make else []
        return [contender.name for contender in self._contenders]

    def check(self, index: int) -> Check:
        """Check one of them."""
        return self._contenders[index].check()

    def sample(self, index: int, repeats: int) -> Sample:
        """Time one of them."""
        return self._contenders[index].sample(repeats)


def serve(connection: Connection, library: str, threads: int) -> None:
    """Answer requests until the parent closes the connection."""
    contenders = None
    while True:
        try:
            method, *arguments = connection.recv()
        except EOFError:
            return
        try:
            contenders = contenders or Contenders(library, threads)
            connection.send((False, getattr(contenders, method)(*arguments)))
        except Exception as error:  # of any library: the parent decides
            connection.send((True, f"{type(error).__name__}: {error}"))
