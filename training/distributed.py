"""One process or several: which this is, and what they tell each other; no-ops where there is one.

    torchrun --nproc-per-node=2 train.py

Every process runs the same lines. What only one can do (read the data, write a file) goes
through `from_first`, and what all have a part of (gradients, losses) through `sum_up`. Messages
are pickles, as torch.distributed sends them: join only processes that you trust.
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

    Only the first of them is heard: what the others print is dropped, but for a traceback. On
    GPUs each gets one of its own, which it may call "cuda", like a process that is alone.
    """
    ours, all_of_us = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= ours < all_of_us:
        raise ValueError(f"RANK is {ours} and WORLD_SIZE {all_of_us}; torchrun sets them")
    if all_of_us == 1:
        yield
        return
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store = None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun keeps its store when it restarts a group, and in it the addresses of processes
        # that are dead: each start gets a part of the store of its own.
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    with connection():
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=ours, world_size=all_of_us)
    try:
        with contextlib.ExitStack() as silence:
            if rank() > 0:
                nowhere = silence.enter_context(open(os.devnull, "w", errors="replace"))
                silence.enter_context(contextlib.redirect_stdout(nowhere))
                silence.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    except (KeyboardInterrupt, OSError, ValueError):
        if rank() == 0:
            raise
        sys.exit(1)  # the first one says why
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return which process this is, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_first(make: Callable[[], Any]) -> Any:
    """Let the first process call `make`, and return to all what it returned, tensors on the CPU.

    If `make` fails, the first raises its error, and the others end.
    """
    if world_size() == 1:
        return make()
    message, failure = [None], None
    if rank() == 0:
        try:
            message = [(make(),)]
        except Exception as error:
            failure = error
    with connection():
        dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
    if failure:
        raise failure
    if message[0] is None:
        sys.exit(1)  # the first one says why
    return message[0][0]


def sum_up(tensors: list[torch.Tensor]) -> None:
    """Add up each tensor over all processes, in place; they have one dtype and device."""
    if world_size() == 1:
        return
    sums = torch.cat([tensor.flatten() for tensor in tensors])  # one message for all of them
    with connection():
        dist.all_reduce(sums)
    parts = sums.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


@contextlib.contextmanager
def connection() -> Iterator[None]:
    """Give the failure of a message between processes one type: ConnectionError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        message = f"the processes lost each other; --resume goes on ({reason})"
        raise ConnectionError(message) from None
