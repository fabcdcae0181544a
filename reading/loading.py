"""Several images at once: those that a command names, and worker processes that read ahead.

The worker processes are those of PyTorch's DataLoader.
"""

import codecs
import contextlib
import functools
import glob
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from model import IMAGE_SIZE
from reading.files import naming_file
from reading.image_io import HEIF_SUFFIXES, ImageLike, set_up_pillow, to_grayscale
from reading.preprocessing import Classify, preprocess, preprocess_batch

AHEAD = 2  # items that each worker process may have been sent and not answered
MAX_STDIN_SIZE = 500_000_000  # bytes; a photo of 200 megapixels has fewer
MAX_JOIN = 5.0  # seconds for each thread, which needs far less


# ---- Which images ------------------------------------------------------------------------


def find_images(
    arguments: Iterable[str], list_file: str | None = None
) -> Iterator[tuple[str, str | bytes | Exception]]:
    """Yield the path of each image, and what is to be read: the path, or for `-` stdin's bytes.

    Worker processes have no stdin. An error of the list comes in its turn, with no path, so that
    the images before it are read all the same.
    """
    listed = read_list(list_file) if list_file else ()
    try:
        for path in itertools.chain(find_paths(arguments), listed):
            if os.path.isdir(path):
                yield path, ValueError(f"{path}: a folder without images")
            else:
                yield path, read_stdin() if path == "-" else path
    except OSError as error:
        yield "", error


def find_paths(arguments: Iterable[str]) -> Iterator[str]:
    """Yield paths one by one: files, those that match patterns, and those in folders."""
    for argument in arguments:
        found = iter(())
        if os.path.isdir(argument):
            found = images_below(argument)
        elif not os.path.exists(argument) and glob.has_magic(argument):
            found = iter(sorted(glob.glob(argument, recursive=True)))
        yield next(found, argument)  # where nothing is found, reading it says why
        yield from found


def images_below(folder: str) -> Iterator[str]:
    """Yield the images in a folder and its folders, in an order that is always the same."""
    known = HEIF_SUFFIXES | Image.registered_extensions().keys()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        images = (name for name in sorted(names) if os.path.splitext(name)[1].lower() in known)
        yield from (os.path.join(parent, name) for name in images)


def read_list(path: str) -> Iterator[str]:
    """Yield the paths in a file that has one in each line."""
    with naming_file(path), open(path, "rb") as file:
        for line in file:
            if name := line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n"):
                yield os.fsdecode(name)


def read_stdin() -> bytes | ValueError:
    """Return the bytes of stdin, or an error if they are too many."""
    with open(0, "rb", closefd=False) as stdin:
        content = stdin.read(MAX_STDIN_SIZE + 1)
    if len(content) > MAX_STDIN_SIZE:
        return ValueError(f"more than {MAX_STDIN_SIZE:,} bytes; give the name of a file")
    return content


# ---- Worker processes --------------------------------------------------------------------


class Work(Dataset):
    """What a function makes of the items that a sampler yields, or the errors that it raises."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        try:
            return item if isinstance(item, Exception) else self.function(item)
        except (OSError, ValueError, MemoryError) as error:
            return error


def work_ahead(function: Callable[[Any], Any], items: Iterable, jobs: int) -> Iterator[Any]:
    """Apply a function to items, in order, by so many processes, which go a few items ahead.

    There may be any number of items; each is sent to a process, and its answer back, or its
    error. An item that is an error comes back as it is. With no jobs, this process does the work.
    """
    loader = DataLoader(
        Work(function),
        sampler=items,
        batch_size=None,
        collate_fn=unchanged,
        num_workers=jobs,
        prefetch_factor=AHEAD if jobs else None,
        worker_init_fn=functools.partial(start_worker, Image.MAX_IMAGE_PIXELS),
        generator=torch.Generator(),  # or it would take one of the caller's random numbers
    )
    with ignoring_interrupts() if jobs else contextlib.nullcontext():
        answers = iter(loader)
    yield from answers


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Let processes that are started meanwhile leave Ctrl-C to this one, even while they start."""
    main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def join_queue_threads() -> None:
    """Wait for the threads that fed worker processes, which end when those have been stopped.

    Where processes are spawned, such a thread frees a semaphore last. If Python ends meanwhile,
    it complains of a leak.
    """
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":  # of multiprocessing.Queue
            thread.join(MAX_JOIN)


def unchanged(answer: Any) -> Any:
    """Return what is given."""
    return answer


def start_worker(max_pixels: int | None, worker_id: int) -> None:
    """Give a worker process the settings of ours; a spawned one has none of them."""
    set_up_pillow(max_pixels)


@contextlib.contextmanager
def explaining_dead_workers() -> Iterator[None]:
    """Turn what DataLoader raises where a worker process dies into a ChildProcessError."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        reason = "a worker process died, perhaps for lack of memory, or since the script lacks "
        reason += 'if __name__ == "__main__"; try fewer jobs'
        raise ChildProcessError(reason) from error


def preprocess_batches(
    images: Iterable[ImageLike], batch_size: int, jobs: int, classify: Classify
) -> Iterator[torch.Tensor]:
    """Yield what `preprocess` makes of images, (n, 1, 28, 28); raise the first error."""
    preprocess_one = functools.partial(preprocess, classify=classify)
    whole = isinstance(images, np.ndarray | torch.Tensor)
    if whole and images.ndim < 3:
        shape = tuple(images.shape)
        raise ValueError(f"predict_batch takes several images, not {shape}; predict takes one")
    if jobs:
        preprocessed = preprocess_ahead(preprocess_one, images, jobs)
        while batch := list(itertools.islice(preprocessed, batch_size)):
            yield torch.stack(batch)
        return
    if whole:
        for start in range(0, len(images), batch_size):
            yield preprocess_batch(images[start : start + batch_size], classify)
        return
    for small, group in itertools.groupby(images, is_small_array):
        ready = map(
            unchanged if small else preprocess_one, group
        )  # holds one large image at a time
        while batch := list(itertools.islice(ready, batch_size)):
            yield preprocess_batch(np.stack(batch), classify) if small else torch.stack(batch)


def is_small_array(image: ImageLike) -> bool:
    """Whether an image is a uint8 array of MNIST's size, many of which are checked at once."""
    shape = (IMAGE_SIZE, IMAGE_SIZE)
    return isinstance(image, np.ndarray) and image.shape == shape and image.dtype == np.uint8


def preprocess_ahead(
    preprocess_one: Callable[[ImageLike], torch.Tensor], images: Iterable[ImageLike], jobs: int
) -> Iterator[torch.Tensor]:
    """Yield what `preprocess` makes of each image, by worker processes; raise the first error."""
    for answer in work_ahead(functools.partial(to_array, preprocess_one), sendable(images), jobs):
        if isinstance(answer, Exception):
            raise answer
        yield torch.from_numpy(answer)


def to_array(preprocess_one: Callable[[ImageLike], torch.Tensor], image: ImageLike) -> np.ndarray:
    """Preprocess an image to an array, which needs no shared memory on its way back."""
    return preprocess_one(image).numpy()


def sendable(images: Iterable[ImageLike]) -> Iterator[str | bytes | np.ndarray | Exception]:
    """Yield what another process can be sent: paths and bytes, and of all else the gray values."""
    for image in images:
        image = os.fspath(image) if isinstance(image, os.PathLike) else image
        try:
            yield image if isinstance(image, str | bytes) else to_grayscale(image)[0]
        except (OSError, ValueError, MemoryError) as error:
            yield error


@functools.cache
def survive_forks() -> None:
    """Let child processes made by fork compute on one thread.

    They have the parent's pool of threads without its threads, and would wait for them forever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
