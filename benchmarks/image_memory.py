"""How much memory `inference.py` takes for large photos, one alone and two at once.

    python benchmarks/image_memory.py

Each photo is read in a new process, and then two copies of it with `--jobs 2`. The figure is the
highest sum of what the command and its worker processes hold, where memory that they share counts
once (PSS); it is sampled all the time, so it takes Linux.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from training.data import load_sample  # noqa: E402

PHOTOS = {  # megapixels: width and height of what cameras and phones make
    12: (4_032, 3_024),
    50: (8_160, 6_120),
    100: (11_648, 8_736),
    108: (12_000, 9_000),
    200: (16_320, 12_240),
}
KINDS = {
    "baseline JPEG": ("jpg", {"quality": 85}, (12, 50, 108, 200)),
    "progressive JPEG": ("jpg", {"quality": 85, "progressive": True}, (12, 50, 108, 200)),
    "PNG": ("png", {"compress_level": 1}, (100,)),
}


def photograph(digit: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Put a digit of MNIST, dark, on a large sheet of bluish paper."""
    sheet = Image.new("RGB", size, (225, 230, 240))
    side = min(size) // 2
    ink = Image.fromarray(digit).resize((side, side), Image.BICUBIC)
    sheet.paste((30, 30, 80), (size[0] // 4, size[1] // 4), ink)
    return sheet


def held(pid: int) -> int:
    """Return the kB that a process and its children hold; 0 once they have ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return own + sum(held(int(child)) for child in children)


def measure(*arguments: str) -> tuple[int, float]:
    """Return the highest memory of `inference.py`, in MB, and its seconds."""
    started, highest = time.perf_counter(), 0
    command = [sys.executable, str(PROJECT_DIR / "inference.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            highest = max(highest, held(run.pid))
            time.sleep(0.005)
        answers = run.stdout.read().splitlines()
    if run.returncode or not all(": 7 (" in answer for answer in answers):
        raise RuntimeError(f"{command} ended with {run.returncode}: {answers}")
    return highest // 1000, time.perf_counter() - started


def main() -> int:
    """Print the table."""
    digit = load_sample(train=False).images[7].numpy()
    print("| photo | megapixels | one: MB | seconds | two at once: MB | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for kind, (suffix, options, sizes) in KINDS.items():
            for megapixels in sizes:
                paths = [Path(folder) / f"{i}.{suffix}" for i in range(2)]
                photograph(digit, PHOTOS[megapixels]).save(paths[0], **options)
                paths[1].write_bytes(paths[0].read_bytes())
                one, seconds = measure(str(paths[0]))
                two, both = measure(*map(str, paths), "--jobs", "2")
                print(f"| {kind} | {megapixels} | {one:,} | {seconds:.1f} | {two:,} | {both:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
