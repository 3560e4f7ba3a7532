"""Parameter groups by rule, the schedule as a pure function, and the moving average."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

NO_DECAY = (nn.Embedding, nn.LayerNorm)  # our own modules have an attribute


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, backbone_factor: float = 1.0
) -> list[dict]:
    """AdamW groups by one rule: parameters of two or more dimensions decay, except embeddings,
    norms and those that a module lists in its attribute `no_weight_decay`.

    Returns:
        Groups with `params`, `weight_decay`, `lr`, `base_lr` and a `name` to print.
    """
    groups: dict[str, dict] = {}
    for path, module in model.named_modules():
        excluded = getattr(module, "no_weight_decay", ())
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            decays = parameter.ndim > 1 and name not in excluded
            decays = decays and not isinstance(module, NO_DECAY)
            in_backbone = path.split(".")[0] == "backbone"
            title = f"{'backbone' if in_backbone else 'heads'}, {'' if decays else 'no '}decay"
            rate = lr * (backbone_factor if in_backbone else 1.0)
            group = {"name": title, "base_lr": rate, "params": [], "lr": rate}
            group["weight_decay"] = weight_decay if decays else 0.0
            groups.setdefault(title, group)["params"].append(parameter)
    return list(groups.values())


def describe_groups(groups: list[dict]) -> str:
    """One line per group: how many tensors and parameters, at which rate and decay."""
    return "\n".join(
        f"  {group['name']:<20} {len(group['params']):4d} tensors "
        f"{sum(p.numel() for p in group['params']):10,d} parameters  "
        f"lr {group['base_lr']:.2e}  weight decay {group['weight_decay']:g}"
        for group in groups
    )


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a pure function of the iteration, without state to save."""

    iterations: int  # length of the run
    warmup: int = 0  # iterations of linear warm-up
    kind: str = "cosine"  # or "multistep", or "poly" (power 0.9)
    drops: tuple[int, ...] = ()  # multistep: iterations at which the rate falls to a tenth
    final: float = 0.01  # cosine: the last factor

    def factor(self, iteration: int) -> float:
        """Factor of the base learning rate at `iteration` (0-based)."""
        warm = min(1.0, (iteration + 1) / (self.warmup + 1))
        if self.kind == "multistep":
            return warm * 0.1 ** sum(iteration >= drop for drop in self.drops)
        progress = max(0, iteration - self.warmup) / max(1, self.iterations - self.warmup)
        progress = min(1.0, progress)
        if self.kind == "poly":
            return warm * (1 - progress) ** 0.9
        return warm * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress)))

    def apply(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(iteration)


class MovingAverage:
    """Exponential moving average (EMA) of parameters and buffers, for evaluation.

    The decay is min(decay, (1 + n) / (10 + n)) at update n. Make it once the model is on its
    device, in its memory format.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # State dicts share memory with their modules: listing them once saves time per update.
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        floating, self.whole = [], []
        for pair in pairs:
            (floating if pair[0].is_floating_point() else self.whole).append(pair)
        self.averaged, self.current = map(list, zip(*floating))

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(self.averaged, self.current, self.updates)
        for value, now in self.whole:
            value.copy_(now)
