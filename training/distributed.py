"""One process or several: which this is, and what they tell each other; no-ops where there is one.

    torchrun --nproc-per-node=2 train.py

Every process runs the same lines. What only one can do (read the data, write a file) goes
through `from_first`, and what all have a part of (gradients, losses) through `sum_up`.
"""

import contextlib
import io
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
    with connection():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", **meeting())
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


def meeting() -> dict[str, Any]:
    """Return where the processes of a group meet that torchrun may have restarted.

    On one machine torchrun keeps its store over a restart, and in it the addresses of
    processes that are dead: each start gets a part of the store of its own.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or env["GROUP_WORLD_SIZE"] != "1":
        return {}
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
    store = dist.PrefixStore(env["TORCHELASTIC_RESTART_COUNT"], store)
    return {"store": store, "rank": int(env["RANK"]), "world_size": int(env["WORLD_SIZE"])}


def rank() -> int:
    """Return which process this is, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launcher() -> str:
    """Return the command that starts as many processes as there are."""
    if world_size() == 1:
        return "python"
    each = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    nodes = f"--nnodes={world_size() // each} " if each < world_size() else ""
    return f"torchrun {nodes}--nproc-per-node={each}"


def from_first(make: Callable[[], Any]) -> Any:
    """Let the first process call `make`, and return to all what it returned.

    That is tensors, which the others get on the CPU, and plain values. If `make` fails, the
    first raises its error, and the others end.
    """
    if world_size() == 1:
        return make()
    error, buffer = None, io.BytesIO()
    if rank() == 0:
        try:
            made = make()
            torch.save(made, buffer)
        except Exception as caught:
            error = caught
    size = torch.tensor(-1 if error else buffer.tell())
    with connection():
        dist.broadcast(size, src=0)
    if error:
        raise error
    if size < 0:
        sys.exit(1)  # the first one says why
    content = torch.zeros(int(size), dtype=torch.uint8)
    if rank() == 0:
        content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    with connection():
        dist.broadcast(content, src=0)
    if rank() == 0:
        return made
    return torch.load(io.BytesIO(content.numpy()), map_location="cpu", weights_only=True)


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
