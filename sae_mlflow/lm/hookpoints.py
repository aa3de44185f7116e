"""A language model read at its hookpoints: one forward pass, stopped when all are there.

A hookpoint is a module whose output is an activation: `layers.10` (block 10's own output, the
residual stream), `layers.10.mlp`, or any path in the base model. `layers` stands for the list of
blocks, whatever the architecture calls it. `layers.10.mlp:input` is what the module takes in: the
first tensor that it is called with.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_mlflow import naming
from sae_mlflow.errors import UserError, did_you_mean, known


class _AllCaptured(Exception):
    """Ends a forward pass whose activations are all there."""


class LanguageModel:
    """A causal LM, read at its hookpoints; the model itself stays as it is."""

    def __init__(self, model: Any, name: str) -> None:
        self.model = model.eval()
        self.name = name

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.inference_mode()
    def activations(self, token_ids: Tensor, hookpoints: Iterable[str]) -> dict[str, Tensor]:
        """One forward pass, without the head and no deeper than the deepest hookpoint.

        Args:
            token_ids: `[batch, context]`.

        Returns:
            Each hookpoint's activations `[batch * context, d_in]`, in the LM's dtype, on its
            device. A hookpoint that the forward pass doesn't come through is missing.

        Raises:
            UserError: a hookpoint names no module.
        """
        modules = {hookpoint: self.module(hookpoint) for hookpoint in hookpoints}
        captured: dict[str, Tensor] = {}
        handles = [
            _listen(module, hookpoint, captured, wanted=len(modules))
            for hookpoint, module in modules.items()
        ]
        try:
            self.model.base_model(input_ids=token_ids.to(self.device), use_cache=False)
        except _AllCaptured:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return captured

    def module(self, hookpoint: str) -> nn.Module:
        """The module whose output, or input, a hookpoint is.

        Raises:
            UserError: there is none; the nearest are named.
        """
        base = self.model.base_model
        blocks = self._block_list()
        path = naming.module_path(hookpoint)
        try:
            return base.get_submodule(re.sub(r"^layers(?=\.|$)", blocks, path))
        except AttributeError:
            pass
        names = [
            re.sub(rf"^{re.escape(blocks)}(?=\.|$)", "layers", n) for n, _ in base.named_modules()
        ]
        raise UserError(
            f"model.layers: {self.name} has no module {path!r}. {did_you_mean(path, names)}"
            f"{self._what_there_is(hookpoint, names)}"
        )

    def _what_there_is(self, hookpoint: str, names: Sequence[str]) -> str:
        """For one that names no module: those of its block, or how blocks are named."""
        block = naming.block_number(hookpoint)
        if block is None:
            last = self.model.config.get_text_config().num_hidden_layers - 1
            return (
                f"Write a block's number (0 to {last}), a range of them (0-{last} is all), or a "
                "module's path, such as layers.0.mlp."
            )
        inside = [name for name in names if name.startswith(f"layers.{block}.")]
        return f"There are: {known(inside)}."

    def _block_list(self) -> str:
        """Path of the list of blocks in the base model: `layers`, `h`, `decoder.layers`, ..."""
        n_layers = self.model.config.get_text_config().num_hidden_layers
        for name, module in self.model.base_model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == n_layers:
                return name
        raise UserError(f"{self.name} has no list of {n_layers} blocks; it can't be read.")


def _listen(
    module: nn.Module, hookpoint: str, captured: dict[str, Tensor], wanted: int
) -> RemovableHandle:
    """Put a module's input or output into `captured`; the last one `wanted` ends the pass."""

    def capture(acts: object) -> None:
        if not isinstance(acts, Tensor) or hookpoint in captured:
            return  # of a module that several blocks share, the first call counts
        # what follows may work in place
        captured[hookpoint] = acts.reshape(-1, acts.shape[-1]).clone()
        if len(captured) == wanted:
            raise _AllCaptured

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        capture(_first_tensor(args, kwargs))

    def after(_module: nn.Module, _args: tuple, output: object) -> None:
        capture(output[0] if isinstance(output, tuple) else output)

    if naming.is_input(hookpoint):
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _first_tensor(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """A module's input; among keywords `hidden_states`, which may stand behind a mask."""
    given = (*args, kwargs.get("hidden_states"), *kwargs.values())
    return next((value for value in given if isinstance(value, Tensor)), None)


def check_one_a_token(
    model: str, hookpoints: Iterable[str], acts: Mapping[str, Tensor], n_tokens: int
) -> None:
    """Raise a UserError where a hookpoint is missing in what `LanguageModel.activations` gave, or
    has other rows than one a token."""
    for hookpoint in hookpoints:
        if hookpoint not in acts or acts[hookpoint].shape[0] != n_tokens:
            verb = "take in" if naming.is_input(hookpoint) else "put out"
            module, block = naming.module_path(hookpoint), block_of(hookpoint)
            other = block if module != block else f"{block}.mlp"
            raise UserError(
                f"model.layers: {module} of {model} doesn't {verb} one activation a token. Choose "
                f"another module, for example {other}."
            )


def block_of(hookpoint: str) -> str:
    """The block that a hookpoint lies in, for an error's hint; the first one outside the blocks."""
    return f"layers.{naming.block_number(hookpoint) or 0}"
