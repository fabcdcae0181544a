"""How well a network reads digits whose answers are known, and how sure of them it is."""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import normalize
from training.data import Digits

EVALUATION_BATCH = 250  # images; small enough for the processor's cache
DIGITS_KEPT = 0.995  # of those whose confidence decides what is refused


class Evaluation(NamedTuple):
    """How a network does on labelled digits."""

    loss: float  # mean cross-entropy, in nats
    accuracy: float  # 0..1
    misses: int
    probabilities: torch.Tensor  # float32 (N, 10), on the CPU


@torch.inference_mode()
def compute_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Map images as `normalize` takes them, N of them, to logits, float32 (N, 10), on the CPU.

    Dropout is off; random numbers are left alone.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    batches = images.split(EVALUATION_BATCH)
    logits = torch.cat([model(normalize(batch.to(device))).cpu() for batch in batches])
    model.train(was_training)
    return logits


def evaluate(model: nn.Module, digits: Digits) -> Evaluation:
    """Read labelled digits in float32, and compare."""
    logits, labels = compute_logits(model, digits.images), digits.labels.cpu()
    misses = int((logits.argmax(dim=1) != labels).sum())
    loss = F.cross_entropy(logits, labels).item()
    return Evaluation(loss, 1 - misses / len(digits), misses, logits.softmax(dim=1))


def least_confidence(model: nn.Module, digits: Digits) -> float:
    """Return the confidence that 99.5% of the digits reach that a network was trained on."""
    confidences = evaluate(model, digits).probabilities.amax(dim=1)
    return round(confidences.quantile(1 - DIGITS_KEPT).item(), 4)
