"""One process or several (torchrun): which this is, and what they tell each other.

Every process runs the same lines. What only one can do (read the data, write a file) goes
through `from_first`, and what all have a part of (gradients, losses) through `sum_up`.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, if torchrun started this one as one of several.

    Only the first is heard: what the others print is dropped. Each gets a GPU of its own.
    """
    ours, all_of_us = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= ours < all_of_us:
        raise ValueError(f"RANK is {ours} and WORLD_SIZE {all_of_us}; torchrun sets them")
    if all_of_us == 1:
        yield
        return
    # Loaded later, by an optimizer, it would keep this group as the default of its functions. The
    # group's threads would then live on, and end the process with SIGABRT when Python exits.
    import torch.distributed.nn

    backend, store = "gloo", None
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun keeps its store when it restarts a group, and in it the addresses of processes
        # that are dead: each start gets a part of the store of its own.
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    with connection():
        dist.init_process_group(backend, store=store, rank=ours, world_size=all_of_us)
    try:
        with open(os.devnull, "w", errors="replace") as nowhere:
            out, err = (sys.stdout, sys.stderr) if rank() == 0 else (nowhere, nowhere)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield
    except (KeyboardInterrupt, OSError, ValueError):
        if rank() == 0:
            raise
        sys.exit(1)  # the first one says why
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def connection() -> Iterator[None]:
    """Give the failure of a message between processes one type: ConnectionError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        message = f"the processes lost each other; --resume goes on ({reason})"
        raise ConnectionError(message) from None


def rank() -> int:
    """Return which process this is, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_first(make: Callable[[], Any]) -> Any:
    """Return to all what `make` returns in the first process, or end them all if it fails."""
    if world_size() == 1:
        return make()
    made, failure = [None], None
    try:
        made = [(make(),)] if rank() == 0 else [None]
    except Exception as error:
        failure = error
    with connection():
        dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    if failure:
        raise failure
    if made[0] is None:
        sys.exit(1)  # the first one says why
    return made[0][0]


@connection()
def sum_up(tensors: list[torch.Tensor]) -> None:
    """Add up each tensor over all processes, in place; they have one dtype and device."""
    if world_size() == 1:
        return
    sums = torch.cat([tensor.flatten() for tensor in tensors])  # one message for all of them
    dist.all_reduce(sums)
    for tensor, part in zip(tensors, sums.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
