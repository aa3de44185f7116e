"""A site's activations as one training reads them: without giants, scaled, in shuffled batches."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sae_mlflow.activations import cache
from sae_mlflow.activations.finite import NotFinite, count_not_finite
from sae_mlflow.activations.norms import NormCheck, norm_cap
from sae_mlflow.activations.plan import ActivationPlan
from sae_mlflow.activations.store import ActivationFiles, RowFile
from sae_mlflow.errors import UserError
from sae_mlflow.lm.sites import Site
from sae_mlflow.sae.batch import Batch


def open_activations(
    plan: ActivationPlan, device: torch.device | None = None
) -> "list[LayerActivations]":
    """Open every site of a plan whose cache is filled; batches come on `device` (default: cpu).

    Raises:
        UserError: the cap on norms leaves less than one batch; a hookpoint's activations are all 0,
            or mostly no numbers.
    """
    assert all(store.complete() for store in plan.stores), "fill_activations comes first"
    cache.touch(plan.folder)
    return [_open(plan, site, device or torch.device("cpu")) for site in plan.sites]


@dataclass(frozen=True, eq=False)
class ScaledRows:
    """One hookpoint's rows on disk, and what they are multiplied by."""

    file: RowFile
    d_in: int
    check: NormCheck
    scale: float
    """s in x' = s x: makes the mean square per dimension 1 over the site's training tokens."""

    def read(self, rows: Tensor, device: torch.device) -> Tensor:
        """float32 `[len(rows), d_in]` on `device`."""
        taken = self.file[rows].to(device, torch.float32)
        self.check.see(rows, taken)
        return taken * self.scale


@dataclass(eq=False)
class LayerActivations:
    """What one SAE reads and reconstructs: rows of x and of y belong to the same token."""

    site: Site
    key: str
    """Of the cache: the same for the same language model on the same text."""
    n_train: int
    """Training tokens."""
    n_held_out: int
    n_giant_train: int
    """Tokens left out because their norm at one of the hookpoints is over the cap, or no number."""
    n_giant_held_out: int
    not_finite: NotFinite
    """Those of them that hold NaN or infinity, at any of the hookpoints."""
    scale_in: Tensor
    """float64 `[d_in]`: what each dimension of x is multiplied by; one constant a hookpoint, from
    the training tokens alone."""
    scale_out: Tensor
    """float64 `[d_out]`: the same for y."""
    caps: dict[str, float]
    """The largest norm that isn't giant, at each of `site.hookpoints`."""
    largest_norm_ratio: float
    """The largest norm of a training token over their median; of the worst hookpoint."""
    device: torch.device
    _reads: tuple[ScaledRows, ...] = field(repr=False)
    _writes: tuple[ScaledRows, ...] = field(repr=False)
    _train_rows: Tensor = field(repr=False)
    _held_out_rows: Tensor = field(repr=False)

    @property
    def widths_in(self) -> tuple[int, ...]:
        """Dimensions of each hookpoint that is read."""
        return tuple(rows.d_in for rows in self._reads)

    @property
    def scales(self) -> tuple[float, ...]:
        """The constants in `scale_in` and `scale_out`, in the order of `site.hookpoints`."""
        written = () if self.site.reads == self.site.writes else self._writes
        return tuple(rows.scale for rows in (*self._reads, *written))

    @property
    def d_in(self) -> int:
        return len(self.scale_in)

    @property
    def d_out(self) -> int:
        return len(self.scale_out)

    def batches(
        self, batch_tokens: int, generator: torch.Generator, skip: int = 0
    ) -> Iterator[Batch]:
        """One epoch: every training token at most once, in an order drawn from `generator` over
        the whole set, as float32 `[batch_tokens, d]`; what is left for a last, shorter batch is
        dropped, and the first `skip` batches aren't read."""
        order = self._train_rows[torch.randperm(self.n_train, generator=generator)]
        first = skip * batch_tokens
        for begin in range(first, self.n_train - batch_tokens + 1, batch_tokens):
            yield self._batch(order[begin : begin + batch_tokens])
        self.confirm()

    def held_out_batches(self, batch_tokens: int) -> Iterator[Batch]:
        """Every held-out token once, in the text's order, as float32 `[<= batch_tokens, d]`."""
        for rows in self._held_out_rows.split(batch_tokens):
            yield self._batch(rows)
        self.confirm()

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """`n` random training tokens (all, where there are fewer): float32 `[n, d]`."""
        order = torch.randperm(self.n_train, generator=generator)[:n]
        return self._batch(self._train_rows[order])

    def confirm(self) -> None:
        """Raise a UserError where a row that was read so far isn't what was written."""
        for hookpoint in (*self._reads, *self._writes):
            hookpoint.check.confirm()

    def _batch(self, rows: Tensor) -> Batch:
        x = self._read(self._reads, rows)
        same = self.site.writes == self.site.reads
        return Batch(x, x if same else self._read(self._writes, rows))

    def _read(self, hookpoints: tuple[ScaledRows, ...], rows: Tensor) -> Tensor:
        parts = [hookpoint.read(rows, self.device) for hookpoint in hookpoints]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _open(plan: ActivationPlan, site: Site, device: torch.device) -> LayerActivations:
    stores = {store.hookpoint: store for store in plan.stores}
    norms = {hookpoint: stores[hookpoint].norms() for hookpoint in site.hookpoints}
    ratio = plan.settings.activations.max_norm_ratio
    caps = {h: norm_cap(each[: plan.n_train_rows], ratio) for h, each in norms.items()}
    medians = {h: norm_cap(each[: plan.n_train_rows], 1.0) for h, each in norms.items()}
    not_finite = count_not_finite(
        site.label, norms, plan.stores[0].rows_before, plan.settings.activations.dtype
    )
    train_rows, held_out_rows = _usual_rows(plan, [norms[h] <= caps[h] for h in norms])
    if len(train_rows) < plan.settings.train.batch_tokens or not len(held_out_rows):
        raise UserError(_too_few(plan, site, len(train_rows), len(held_out_rows)))
    scaled = {h: _scaled(stores[h], norms[h], train_rows) for h in site.hookpoints}
    reads, writes = (tuple(scaled[h] for h in side) for side in (site.reads, site.writes))
    n_held_out_rows = len(norms[site.reads[0]]) - plan.n_train_rows
    return LayerActivations(
        site=site,
        key=plan.key,
        n_train=len(train_rows),
        n_held_out=len(held_out_rows),
        n_giant_train=plan.n_train_rows - len(train_rows),
        n_giant_held_out=n_held_out_rows - len(held_out_rows),
        not_finite=not_finite,
        scale_in=_by_dimension(reads),
        scale_out=_by_dimension(writes),
        caps=caps,
        largest_norm_ratio=max(norms[h][train_rows].max().item() / medians[h] for h in norms),
        device=device,
        _reads=reads,
        _writes=writes,
        _train_rows=train_rows,
        _held_out_rows=held_out_rows,
    )


def _usual_rows(plan: ActivationPlan, within: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Training and held-out rows that are within the cap at every hookpoint."""
    n_train = plan.n_train_rows
    usual = torch.stack(within).all(dim=0)
    train, held_out = (part.nonzero().flatten() for part in (usual[:n_train], usual[n_train:]))
    return train, held_out + n_train


def _scaled(store: ActivationFiles, norms: Tensor, train_rows: Tensor) -> ScaledRows:
    power = norms[train_rows].double().square().mean().item() / store.d_in
    if not power:
        raise UserError(f"{store.hookpoint}: all activations are 0. Choose another module.")
    return ScaledRows(
        store.rows(), store.d_in, NormCheck(store.files.acts, norms), scale=power**-0.5
    )


def _by_dimension(hookpoints: tuple[ScaledRows, ...]) -> Tensor:
    return torch.cat([torch.full((h.d_in,), h.scale, dtype=torch.float64) for h in hookpoints])


def _too_few(plan: ActivationPlan, site: Site, train: int, held_out: int) -> str:
    batch = plan.settings.train.batch_tokens
    few = f", less than one batch of train.batch_tokens = {batch:,}" if train < batch else ""
    lower = ", lower train.batch_tokens" if 0 < train < batch else ""
    return (
        f"{site.label}: {train:,} training and {held_out:,} held-out tokens are left within "
        f"activations.max_norm_ratio = {plan.settings.activations.max_norm_ratio:g} times the "
        f"median norm{few}. Give more text{lower}, or raise activations.max_norm_ratio."
    )
