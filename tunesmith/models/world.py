"""The processes of one run: which one this is, and what they exchange.

A run in one process has the default `World`, whose methods return what they are given; it imports no
`torch.distributed`. Processes are started by `tunesmith tune --processes N`, by `torchrun` or by a cluster; each calls
`join` and then runs the same code on its share of the rows.

    world = join()
    parts = world.collect(lambda: loss_of(my_rows))  # by rank, equal in all processes

Values travel as JSON, never pickled. The world is a context variable and not a parameter, like the receiver of
`tunesmith.progress`: rows are split where answers are generated and scored, below many signatures.
"""

from __future__ import annotations

import heapq
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from tunesmith import errors
from tunesmith.errors import ProcessError, TunesmithError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

# Where the processes of `tune --processes` meet: a file, so that no port is opened for it.
RENDEZVOUS = "TUNESMITH_RENDEZVOUS"
# The first process may compute alone for hours. One that ends is noticed by its closed connections, not by this limit.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, seen from one of them."""

    rank: int = 0  # of this process
    size: int = 1  # number of processes
    local_rank: int = 0  # of this process on its machine
    local_size: int = 1  # processes on this machine
    store: Any = None  # torch's store, for what must work while processes end
    lockstep: bool = False  # weights are sharded: but for the rows of a step, all processes compute the same

    @property
    def dealing(self) -> World:
        """Return the same processes as those that share work, whether or not they run in lockstep otherwise."""
        return replace(self, lockstep=False)

    @property
    def leads(self) -> bool:
        """Return whether this is the first process, the only one that writes, locks and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the JSON value of every process, by rank."""
        if self.size == 1:
            return [value]
        import torch
        from torch import distributed

        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _peers():
            distributed.all_gather(sizes, torch.tensor([len(data)]))
            padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
            padded[: len(data)] = data
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            distributed.all_gather(parts, padded)
        return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(parts, sizes, strict=True)]

    def collect(self, compute: Callable[[], T]) -> list[T]:
        """Compute a JSON value in every process and return all of them, by rank; all raise the error of one."""
        if self.size == 1 or self.lockstep:
            return [compute()]
        mine: dict[str, Any] = {}
        try:
            mine["value"] = compute()
        except ProcessError:  # no other process can be reached
            raise
        except TunesmithError as error:
            mine["error"] = (type(error).__name__, str(error))
        results = self.gather(mine)
        if failed := next((result["error"] for result in results if "error" in result), None):
            kinds = [TunesmithError]
            for kind in kinds:  # which grows: all that this process has imported
                kinds += kind.__subclasses__()
            raise next((kind for kind in kinds if kind.__name__ == failed[0]), TunesmithError)(failed[1])
        return [result["value"] for result in results]

    def lead(self, compute: Callable[[], T]) -> T:
        """Compute a JSON value in the first process and return it in all."""
        with alone():
            return self.dealing.collect(compute if self.leads else lambda: None)[0]  # type: ignore[return-value]

    def broadcast(self, value: T) -> T:
        """Return the JSON value of the first process."""
        return self.gather(value)[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.gather(None)

    @contextmanager
    def first(self, *, of_machine: bool = False) -> Iterator[None]:
        """Run the block in the first process (of each machine), then in the others, which find the files it wrote.

        In lockstep it runs in all at once.
        """
        begins = self.local_rank == 0 if of_machine else self.leads
        if not begins and not self.lockstep:
            self.barrier()
        with alone():
            yield
        if begins or self.lockstep:
            self.barrier()

    def share(self, costs: Sequence[float]) -> list[int]:
        """Return the indices of the items that this process works on; every item goes to one process.

        Each item, the most expensive first, goes to the process with the least work so far (Graham 1969).
        """
        if self.size == 1 or self.lockstep:
            return list(range(len(costs)))
        work = [(0.0, rank) for rank in range(self.size)]
        mine = []
        for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
            load, rank = heapq.heappop(work)
            heapq.heappush(work, (load + costs[index], rank))
            if rank == self.rank:
                mine.append(index)
        return sorted(mine)

    def map(
        self, items: Sequence[T], compute: Callable[[list[T]], list[R]], *, costs: Sequence[float] | None = None
    ) -> list[R]:
        """Split items over the processes, compute a JSON value for each, and return all in all processes, in order."""
        if self.size == 1 or self.lockstep:
            with alone():
                return compute(list(items))
        mine = self.share([1.0] * len(items) if costs is None else costs)
        with alone():
            parts = self.collect(lambda: (mine, compute([items[i] for i in mine]) if mine else []))
        found = {index: value for part in parts for index, value in zip(*part, strict=True)}
        return [found[i] for i in range(len(items))]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of plain parameters over all processes, in one exchange.

        A process without a micro-batch adds zeros. A parameter that no process uses keeps no gradient, so that no
        weight decay moves it.
        """
        parameters = list(parameters)
        if self.size == 1 or not parameters:
            return
        import torch
        from torch import distributed

        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = gradients[0].new_tensor([p.grad is not None for p in parameters])
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), used])
        with _peers():
            distributed.all_reduce(flat)
        *totals, used = flat.split([*(gradient.numel() for gradient in gradients), len(parameters)])
        for parameter, total, uses in zip(parameters, totals, used.tolist(), strict=True):
            parameter.grad = total.view_as(parameter) if uses else None

    def align(self, parameters: Iterable[Tensor]) -> None:
        """Give every process the values that the parameters have in the first one."""
        if self.size == 1:
            return
        from torch import distributed

        with _peers():
            for parameter in parameters:
                distributed.broadcast(parameter.detach(), src=0)

    def claim(self, name: str) -> bool:
        """Return whether this is the first process to call this with a name; works while other processes end."""
        if self.store is None:
            return True
        try:
            return bool(self.store.add(name, 1) == 1)
        except RuntimeError:  # the store has ended with the process that holds it
            return False


def added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add up values by name; a part may lack some of the names."""
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals.get(name, 0) + value
    return totals


_WORLD: ContextVar[World] = ContextVar("world", default=World())  # noqa: B039 - frozen


def current_world() -> World:
    """Return the processes of the present run; a single one unless `join` found more."""
    return _WORLD.get()


def keep_in_step() -> None:
    """Run all processes in lockstep to the end of the run (`among`), because the weights of a network are sharded."""
    _WORLD.set(replace(_WORLD.get(), lockstep=True))


def alone() -> AbstractContextManager[None]:
    """Return a context that runs as if this process were the only one."""
    return among(World())


@contextmanager
def among(world: World) -> Iterator[None]:
    """Run the block as one of some processes."""
    token = _WORLD.set(world)
    try:
        yield
    finally:
        _WORLD.reset(token)


def started_as() -> tuple[int, int]:
    """Return rank and number of processes as `torchrun` or `tune --processes` set them; (0, 1) for a single one."""
    known = RENDEZVOUS in os.environ or "MASTER_ADDR" in os.environ
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "1")
    return (int(rank), int(size)) if known and rank.isdecimal() and size.isdecimal() else (0, 1)


def join() -> World:
    """Connect with the other processes of this run, if it was started with several, and return all of them.

    Raises:
        ProcessError: they cannot be reached.
    """
    rank, size = started_as()
    if size == 1 or current_world().size > 1:
        return current_world()
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        if local_size > (gpus := torch.cuda.device_count()):
            raise ProcessError(f"{local_size} processes on a machine with {gpus} GPUs; start {gpus}")
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _peers("cannot reach the other processes of this run; check MASTER_ADDR and MASTER_PORT"), _no_output():
        store, rank, size = next(rendezvous(os.environ.get(RENDEZVOUS, "env://"), rank, size))
        store = _of_this_start(store, rank, size)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    world = World(rank, size, local_rank, local_size, store)
    _WORLD.set(world)
    return world


@contextmanager
def _no_output() -> Iterator[None]:
    """Send what libraries print on stdout to stderr: there Gloo of torch 2.10 reports each connection."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _of_this_start(store: Any, rank: int, size: int) -> Any:
    """Return the part of a store that only these processes use."""
    # torchrun keeps its store over restarts, with the addresses of ended processes, and counts restarts by machine.
    # So the first process makes up a name, and confirms it to all others that are alive.
    from torch.distributed.distributed_c10d import PrefixStore

    own = uuid4().hex
    if rank == 0:
        store.set("start", own)
        for other in range(1, size):
            store.set(f"{own}/{store.get(f'{own}/{other}').decode()}", "")
        return PrefixStore(own, store)
    while True:
        start = store.get("start").decode()
        store.set(f"{start}/{rank}", own)
        with suppress(RuntimeError):  # not confirmed: a name of an earlier start
            store.wait([f"{start}/{own}"], timedelta(seconds=1))
            return PrefixStore(start, store)


@contextmanager
def passes() -> Iterator[None]:
    """Raise ProcessError where a pass over sharded weights finds that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if not any(part in str(error) for part in ("gloo", "NCCL")):
            raise
        with _peers():
            raise


@contextmanager
def _peers(problem: str = "another process of this run has ended") -> Iterator[None]:
    """Raise ProcessError where the other processes cannot be reached."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        if errors.out_of_memory(error):
            raise
        fix = "" if ";" in problem else "; run the same command again to resume"
        raise ProcessError(f"{problem}{fix}") from error
