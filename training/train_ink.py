"""Train the network that finds the ink of digits, on scenes made by code.

    python -m training.train_ink

Worker processes draw the scenes of `scenes.py`, each of which the network sees once. The same
seed gives the same scenes, however many workers there are; on a CPU, with the same number of
threads, it gives the same weights. A training that was interrupted goes on with --resume.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from reading.checkpoint import load_content, save_content
from reading.devices import computes_in_bfloat16
from reading.files import exit_code
from reading.ink import INK_FORMAT, INK_WEIGHTS, InkNetwork, load_ink_network
from training.data import PROJECT_DIR, load_data
from training.scenes import KINDS, Hands, draw_scene, load_hands

STATE_FORMAT = "mnist-ink-training"
BATCH_SIZE = 32
LEARNING_RATE = 3e-3  # the highest; one cycle (Smith and Topin 2018)
WEIGHT_DECAY = 1e-2
MAX_GRADIENT = 1.0
THIN_CELLS = 5  # of two pixels, a side of the square in which a thin stroke's ink is sparse
THIN_WEIGHT = 0.5  # of a pixel, for each time that such a square has more pixels than ink
SMOOTH = 20.0  # pixels, so that a scene with little ink has a steady loss
SMALL_SHARE = 0.2  # of the batches: at half size, for images of few pixels
STRIP_SHARE = 0.15  # of the batches: strips, as wide images are
STRIP_HEIGHTS = (64, 96)  # pixels
SAVE_EVERY = 60.0  # seconds
REPORT_EVERY = 10.0  # seconds, where there is no terminal
EVALUATION_SEED = 1_000_003  # of the scenes that are evaluated
FOUND = 0.5  # the probability from which a pixel is taken as ink
EMPTY_INK = 0.0005  # of the pixels of a scene without a digit: less is nothing


class Scenes(Dataset):
    """The scenes of one seed: image and ink, uint8 (2, 192, 192), and the kind's number."""

    def __init__(self, hands: Hands, seed: int, start: int, stop: int) -> None:
        self.hands, self.seed, self.start, self.stop = hands, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index >= len(self):
            raise IndexError(index)
        scene = draw_scene(self.hands, self.seed, self.start + index)
        return np.stack([scene.image, scene.ink]), list(KINDS).index(scene.kind)


def batches(scenes: Scenes, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the scenes in order: uint8 (N, 2, 192, 192), and their kinds, int64 (N,)."""
    # As NumPy arrays they come through pipes: some machines have little shared memory.
    loader = DataLoader(
        scenes,
        BATCH_SIZE,
        num_workers=workers,
        collate_fn=stack,
        pin_memory=torch.cuda.is_available(),  # another thread takes them out of the pipes
        prefetch_factor=4 if workers else None,
    )
    for scene_batch, kinds in loader:
        yield torch.from_numpy(scene_batch), torch.from_numpy(kinds)


def stack(items: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Collate scenes into one batch."""
    scenes, kinds = zip(*items, strict=True)
    return np.stack(scenes), np.array(kinds)


# ---- Training ----------------------------------------------------------------------------


def reshape(scenes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reduce some batches to half their size and cut others to strips, as images differ in size."""
    chance, height, place = torch.rand(3, generator=generator).tolist()
    if chance < SMALL_SHARE:
        return F.avg_pool2d(scenes, 2)
    if chance < SMALL_SHARE + STRIP_SHARE:
        rows = STRIP_HEIGHTS[int(height * len(STRIP_HEIGHTS))]
        start = int(place * (scenes.shape[2] - rows + 1))
        return scenes[:, :, start : start + rows]
    return scenes


def thinness(ink: torch.Tensor) -> torch.Tensor:
    """Return 0 for paper and more for ink the thinner its stroke is; float (N, 1, H, W).

    A stroke gets as much in all as any other one as long, whether it is a hairline or broad.
    """
    density = F.avg_pool2d(F.avg_pool2d(ink, 2), THIN_CELLS, 1, THIN_CELLS // 2)
    return ink / F.interpolate(density, scale_factor=2.0).clamp(min=0.5 / THIN_CELLS)


def spread(values: torch.Tensor) -> torch.Tensor:
    """Return the maximum of each pixel and the eight around it: (N, 1, H, W) to the same."""
    values = F.pad(values, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(values[:, :, :-2], values[:, :, 1:-1]), values[:, :, 2:])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def ink_loss(logits: torch.Tensor, ink: torch.Tensor) -> torch.Tensor:
    """Return how far the logits are from the ink; both are float (N, 1, H, W).

    Cross-entropy in which thin strokes are heavy, the overlap (Dice loss, Milletari et al. 2016),
    and, in scenes without a digit, how much is found.
    """
    # The paper beside a thin stroke is as heavy as the stroke, so that its edges are exact.
    weight = 1 + THIN_WEIGHT * spread(thinness(ink))
    cross_entropy = F.binary_cross_entropy_with_logits(logits, ink, weight)
    found = logits.sigmoid()
    areas = [(values * weight).sum((1, 2, 3)) for values in (found * ink, found, ink)]
    overlap, n_found, n_ink = areas
    dice = 1 - (2 * overlap + SMOOTH) / (n_found + n_ink + SMOOTH)
    too_much = (1 + n_found / SMOOTH).log() / 4  # as Dice loss falls little where much is found
    return cross_entropy + 0.5 * torch.where(n_ink > 0, dice, too_much).mean()


class Trainer:
    """The network in training, with all that is needed to go on after an interruption."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(arguments.seed)
        self.device = arguments.device
        self.seed, self.n_scenes = arguments.seed, arguments.scenes
        self.n_steps = -(-arguments.scenes // BATCH_SIZE)
        self.step = 0
        network = InkNetwork(batch_norm=True)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, LEARNING_RATE, total_steps=self.n_steps + 1, pct_start=0.1
        )
        self.loss = 0.0

    def train_step(self, scenes: torch.Tensor) -> None:
        """Take one step on a batch of scenes, uint8 (N, 2, 192, 192)."""
        generator = torch.Generator().manual_seed(self.seed + 1 + self.step)
        scenes = reshape(scenes.to(self.device).float() / 255, generator)
        gray, ink = scenes.split(1, dim=1)
        with autocast(self.device):
            logits = self.network(gray)
        loss = ink_loss(logits.float(), ink)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        if self.step % 20 == 1:  # a GPU must be waited for to tell
            self.loss = loss.item()

    def state(self) -> dict:
        """Return what `restore` takes."""
        parts = {
            name: getattr(self, name).state_dict() for name in ("network", "optimizer", "schedule")
        }
        return {"step": self.step, "seed": self.seed, "scenes": self.n_scenes, **parts}

    def restore(self, state: dict) -> None:
        """Go on where a training with the same settings was interrupted."""
        if (state["seed"], state["scenes"]) != (self.seed, self.n_scenes):
            settings = f"--seed {state['seed']} --scenes {state['scenes']}"
            raise ValueError(f"the training to resume had {settings}; give these")
        for name in ("network", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]


def autocast(device: str) -> contextlib.AbstractContextManager:
    """Compute in bfloat16 where the device does so natively."""
    enabled = computes_in_bfloat16(device)
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def sharing_cores(device: str) -> Iterator[None]:
    """Train on half of the threads, if it is a CPU's: the other cores draw."""
    n_threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(max(1, n_threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def train(trainer: Trainer, hands: Hands, arguments: argparse.Namespace) -> None:
    """Train to the end, and save the state every minute."""
    start = trainer.step * BATCH_SIZE
    scenes = Scenes(hands, arguments.seed, start, arguments.scenes)
    bar = tqdm(total=arguments.scenes, initial=start, unit="scene", disable=None)
    began = saved = reported = time.monotonic()
    trainer.network.train()
    for batch, _ in batches(scenes, arguments.workers):
        trainer.train_step(batch)
        bar.update(len(batch))
        bar.set_postfix(loss=f"{trainer.loss:.3f}", refresh=False)
        now = time.monotonic()
        if bar.disable and now - reported > REPORT_EVERY:
            reported = now
            done = trainer.step * BATCH_SIZE
            speed = (done - start) / (now - began)
            print(f"{done:,} scenes, {speed:.0f} a second, loss {trainer.loss:.3f}", flush=True)
        if now - saved > SAVE_EVERY:
            saved = now
            save_content(state_path(arguments.output), STATE_FORMAT, trainer.state())
    bar.close()


def save_ink(arguments: argparse.Namespace, trainer: Trainer) -> None:
    """Write the weights, without batch normalization, and the command that made them."""
    trained = InkNetwork(batch_norm=True)
    trained.load_state_dict({k: v.cpu() for k, v in trainer.network.state_dict().items()})
    weights = {
        name: t.half().contiguous() for name, t in fold_batch_norm(trained).state_dict().items()
    }
    metadata = {"command": arguments.command, "scenes": arguments.scenes}
    save_content(arguments.output, INK_FORMAT, {"metadata": metadata, "weights": weights})


def fold_batch_norm(network: InkNetwork) -> InkNetwork:
    """Return the same function, in evaluation mode, without batch normalization."""
    folded = InkNetwork().eval()
    of_type = lambda net, kind: [m for m in net.modules() if isinstance(m, kind)]  # noqa: E731
    norms = of_type(network.eval(), nn.BatchNorm2d)
    *convolutions, last = of_type(network, nn.Conv2d)
    *targets, out = of_type(folded, nn.Conv2d)
    for convolution, norm, target in zip(convolutions, norms, targets, strict=True):
        fused = nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
        target.load_state_dict(fused.state_dict())
    out.load_state_dict(last.state_dict())
    return folded


def state_path(output: Path) -> Path:
    """Return where the state of an unfinished training is kept."""
    return output.with_suffix(".training.pt")


# ---- Evaluation --------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(network: InkNetwork, hands: Hands, arguments: argparse.Namespace) -> list[str]:
    """Return a table: how much of the ink of other scenes is found, by kind.

    IoU is the area of the ink that is found and there, as a share of what is found or there;
    strokes is how much of their length is found. A scene without a digit counts as
    right where next to nothing is found.
    """
    network = network.to(arguments.device)
    results: dict[int, list[tuple[float, float, float]]] = {}
    scenes = Scenes(hands, EVALUATION_SEED, 0, arguments.evaluate)
    for batch, kinds in batches(scenes, arguments.workers):
        gray, ink = (batch.to(arguments.device).float() / 255).split(1, dim=1)
        with autocast(arguments.device):
            found = network(gray).float().sigmoid() > FOUND
        thin, ink = thinness(ink), ink > FOUND
        share = lambda a, b: (a.sum((1, 2, 3)) + 1) / (b.sum((1, 2, 3)) + 1)  # noqa: E731
        iou, strokes = share(found & ink, found | ink), share(found * thin, thin)
        empty = (found.float().mean((1, 2, 3)) < EMPTY_INK).float()
        rows = torch.stack([iou, strokes, empty], 1).cpu().tolist()
        for kind, row in zip(kinds.tolist(), rows, strict=True):
            results.setdefault(kind, []).append(row)
    lines = [
        "| kind | scenes | IoU | strokes found | nothing found |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, rows in sorted(results.items()):
        iou, strokes, empty = np.mean(rows, axis=0)
        lines.append(
            f"| {list(KINDS)[kind]} | {len(rows)} | {iou:.1%} | {strokes:.1%} | {empty:.1%} |"
        )
    return lines


# ---- Command line ------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments; SystemExit with code 2 where they make no sense."""
    parser = argparse.ArgumentParser(description="Train the network that finds the ink of digits.")
    add = parser.add_argument
    add("--scenes", type=int, default=400_000, help="how many to train on [%(default)s]")
    add("--seed", type=int, default=0, help="of the scenes and of the first weights [0]")
    add("--device", default="auto", help="cpu, cuda or mps; by default a GPU if there is one")
    add("--workers", type=int, help="processes that draw [one for two cores, or one a core]")
    add("--output", type=Path, default=INK_WEIGHTS, help="where weights go")
    add("--data-dir", default=PROJECT_DIR / "data", help="the folder of MNIST")
    add("--evaluate", type=int, default=2000, help="scenes of another seed to evaluate on [2000]")
    add("--resume", action="store_true", help="go on with a training that was interrupted")
    add("--sample", action="store_true", help="a minute's run on the bundled digits, for tests")
    arguments = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    arguments.command = " ".join(["python -m training.train_ink", *given])
    if arguments.sample:
        arguments.scenes, arguments.evaluate = min(arguments.scenes, 480), 100
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.workers is None:
        half = arguments.device == "cpu"  # the other half of the cores trains
        arguments.workers = max(1, (os.cpu_count() or 1) // (1 + half))
    if arguments.scenes < BATCH_SIZE or arguments.workers < 0 or arguments.evaluate < 1:
        parser.error(f"--scenes must be at least {BATCH_SIZE}, --workers 0, --evaluate 1")
    return arguments


def run_command(arguments: argparse.Namespace) -> int:
    """Train, save and evaluate; return the exit code."""
    began = time.monotonic()
    digits, _ = load_data(arguments.data_dir, arguments.sample)
    hands = load_hands(digits.images, count=500 if arguments.sample else 6000)
    print(
        f"strokes of {len(hands.digits):,} digits in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    trainer = Trainer(arguments)
    if arguments.resume:
        trainer.restore(load_content(state_path(arguments.output), STATE_FORMAT))
    with sharing_cores(arguments.device):
        train(trainer, hands, arguments)
    save_ink(arguments, trainer)
    state_path(arguments.output).unlink(missing_ok=True)
    print(*evaluate(load_ink_network(arguments.output), hands, arguments), sep="\n", flush=True)
    print(f"{arguments.output}: {time.monotonic() - began:.0f} s")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = parse_arguments(argv)
    return exit_code("train_ink.py", lambda: run_command(arguments), "; --resume goes on")


if __name__ == "__main__":
    sys.exit(main())
