"""What both training loops share: the schedule, and a state on disk that a stopped run resumes from exactly."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqhps.config import to_dict
from vqhps.errors import VqhpsError

log = logging.getLogger(__name__)


def rate_share(step: int, warmup: int, steps: int) -> float:
    """Share of the highest learning rate at a step: linear rise over `warmup` steps, then a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


class RelativeAdamW(torch.optim.AdamW):
    """AdamW whose steps are relative to the size of what they change: a rate of 0.001 moves a weight by some 0.1 % of
    the root mean square of its output channel.

    For networks whose batch norms were folded into their weights: those differ in size a thousandfold from layer to
    layer and from channel to channel, and no one rate of AdamW suits them.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """See `torch.optim.AdamW.step`."""
        groups = [group["params"] for group in self.param_groups if group.get("relative", True)]
        parameters = [p for group in groups for p in group if p.grad is not None]
        before = [p.clone() for p in parameters]
        result = super().step(closure)
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old + (p - old) * _channel_size(old))
        return result


def _channel_size(weight: torch.Tensor) -> torch.Tensor:
    """Root mean square of each output channel (of the whole, if there is one number a channel), a tenth of the median
    at least; broadcasts with `weight`."""
    squares = weight.square()
    size = (squares.flatten(1).mean(1) if weight.ndim > 1 else squares.mean().expand(len(weight))).sqrt()
    return size.clamp(min=0.1 * float(size.median()) + 1e-6).view(-1, *[1] * (weight.ndim - 1))


def save_state(
    out: Path, config: Any, step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Write `out/state.pt`: settings, modules, optimizer and random state after `step` steps."""
    state = {
        "config": to_dict(config),
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    out.mkdir(parents=True, exist_ok=True)
    torch.save(state, out / "state.pt.partial")
    (out / "state.pt.partial").replace(out / "state.pt")


def resume_state(out: Path, config: Any, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_state` wrote, if there is any.

    Returns:
        Steps already done.

    Raises:
        VqhpsError: the run in `out` has other model settings, or its state is damaged.
    """
    path = out / "state.pt"
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise VqhpsError(f"{path} is damaged; delete it to start the run again") from error
    before, now = ((c.get("method", "vqhps"), c["model"]) for c in (state["config"], to_dict(config)))
    if before != now:
        raise VqhpsError(f"{out} holds a run with other model settings; name another folder with --out")
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    log.info("resumed %s at step %d", out, state["step"])
    return int(state["step"])
