"""Activations made from a known dictionary: what an SAE finds can be held against the truth."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_mlflow.sae import SAE, Batch


@dataclass(frozen=True)
class World:
    """How activations come about: a token is a sparse sum of unit directions, and noise."""

    d: int = 32
    n_directions: int = 64
    """More than dimensions: superposition."""
    l0: float = 3.0
    """Directions that fire on a token, on average."""
    correlation: float = 0.0
    """Of the firing of directions within a group of eight, 0 to 1."""
    noise: float = 0.02
    """Standard deviation in each dimension, as a share of a coefficient of 1."""
    layers: int = 1
    """Layers that write the same coefficients in directions of their own, side by side."""
    transcodes: bool = False
    """Whether the target writes the same coefficients in other directions than what is read."""


class Synthetic:
    """Scaled activations of a world, as a training reads them; coefficients are kept."""

    def __init__(self, world: World, n_train: int, n_held_out: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.n_train = n_train
        n = n_train + n_held_out
        coefficients = make_coefficients(world, n, generator)
        self.held_out_firing = coefficients[n_train:] > 0
        self.read_directions, x = written(world, coefficients, generator)
        self.directions, y = self.read_directions, x
        if world.transcodes:
            self.directions, y = written(world, coefficients, generator)
        self._train = Batch(x[:n_train], y[:n_train])
        self.held_out = Batch(x[n_train:], y[n_train:])

    def batches(
        self, batch_tokens: int, generator: torch.Generator, skip: int = 0
    ) -> Iterator[Batch]:
        order = torch.randperm(self.n_train, generator=generator)
        for rows in order.split(batch_tokens)[skip:]:
            if len(rows) == batch_tokens:
                yield self._rows(rows)

    def held_out_batches(self, batch_tokens: int) -> Iterator[Batch]:
        pairs = zip(*(part.split(batch_tokens) for part in self.held_out), strict=True)
        yield from (Batch(x, y) for x, y in pairs)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        return self._rows(torch.randperm(self.n_train, generator=generator)[:n])

    def _rows(self, rows: Tensor) -> Batch:
        x = self._train.x[rows]
        return Batch(x, x if self._train.y is self._train.x else self._train.y[rows])


def make_coefficients(world: World, n: int, generator: torch.Generator) -> Tensor:
    """`[n, n_directions]`: 0 where a direction is silent, else uniform from 0.5 to 1.5.

    Firing is a Gaussian over a border; with correlation, a group's Gaussians share a part.
    """
    own = torch.randn(n, world.n_directions, generator=generator)
    groups = torch.randn(n, -(-world.n_directions // 8), generator=generator)
    shared = groups.repeat_interleave(8, dim=1)[:, : world.n_directions]
    latent = world.correlation**0.5 * shared + (1 - world.correlation) ** 0.5 * own
    share = torch.tensor(1 - world.l0 / world.n_directions)
    border = torch.distributions.Normal(0.0, 1.0).icdf(share)
    strength = 0.5 + torch.rand(n, world.n_directions, generator=generator)
    return torch.where(latent > border, strength, 0.0)


def written(
    world: World, coefficients: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random unit directions, and the activations that they write, scaled layer by layer."""
    directions, acts = [], []
    for _ in range(world.layers):
        rows = torch.randn(world.n_directions, world.d, generator=generator)
        rows /= rows.norm(dim=1, keepdim=True)
        layer = coefficients @ rows
        layer += world.noise * torch.randn(layer.shape, generator=generator)
        scale = layer.square().mean().rsqrt()
        directions.append(rows * scale)
        acts.append(layer * scale)
    return torch.cat(directions, dim=1), torch.cat(acts, dim=1)


@dataclass(frozen=True)
class Recovery:
    """How well an SAE found the truth."""

    cosine: float
    """Mean over true directions of the cosine to the best decoder row."""
    f1: float
    """Mean over true directions of the F1 of that row's latent firing when the direction does."""


@torch.no_grad()
def recovery(sae: SAE, data: Synthetic) -> Recovery:
    """Hold an SAE's decoder rows, and when its latents fire, against the truth."""
    truth = data.directions
    if sae.W_skip is not None:  # what the linear map writes already isn't left for latents
        truth = truth - data.read_directions @ sae.W_skip.t()
    cosines, best = (unit(truth) @ unit(sae.W_dec).t()).max(dim=1)
    fired = sae.encode(data.held_out.x)[:, best] > 0
    true = data.held_out_firing
    hits = (fired & true).sum(dim=0).double()
    f1 = 2 * hits / (fired.sum(dim=0) + true.sum(dim=0)).clamp_min(1)
    return Recovery(cosines.mean().item(), f1.mean().item())


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
