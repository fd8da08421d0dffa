"""The learning rate: up over the first steps, down with the clock."""

from torch.optim import Optimizer

FLOOR = 1e-6


def set_rate(optimizer: Optimizer, *, peak: float, step: int, warm_up: int, remaining: float) -> None:
    """Sets the rate to `peak`, ramped up over `warm_up` steps, times `remaining`, which falls from 1 to 0."""
    rate = peak * min(1.0, (step + 1) / warm_up) * remaining + FLOOR
    for group in optimizer.param_groups:
        group["lr"] = rate
