"""Optimizers of torch, by name."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sae_mlflow.errors import UserError, did_you_mean, known, reason_of

_UNFIT = {
    "lbfgs": "it goes over a batch several times a step",
    "rprop": "its steps have sizes of their own, so that the learning rate's schedule is ignored",
    "sparseadam": "it takes sparse gradients alone",
}
# set here, or for steps that are recorded or derived, as none is here
_NO_OPTIONS = {"params", "lr", "capturable", "differentiable"}


def make_optimizer(
    name: str, options: Mapping[str, Any], parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimizer whose learning rate is set before each step; fused where torch has that.

    Raises:
        UserError: torch has none of that name, it isn't for this kind of training, or it doesn't
            take these options or parameters.
    """
    optimizer = _find(name)
    takes = inspect.signature(optimizer).parameters.keys() - _NO_OPTIONS
    unknown = sorted(options.keys() - takes)
    if unknown:
        hint = "The learning rate is train.learning_rate. " if "lr" in unknown else ""
        raise UserError(
            f"train.optimizer_options: {optimizer.__name__} doesn't take {known(unknown)}. "
            f"{hint}It takes {known(sorted(takes))}."
        )
    fused = {"fused": True} if "fused" in takes and not options.get("foreach") else {}
    try:
        return optimizer(parameters, **{"lr": 0.0} | fused | dict(options))
    except Exception as error:  # options get anywhere in torch's code, which raises what comes
        raise UserError(_unusable(name, options, error)) from None


def check_optimizer(name: str, options: Mapping[str, Any]) -> None:
    """Raise a UserError where none can be made or take a step, before anything is trained."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2))]
    optimizer = make_optimizer(name, options, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
    except Exception as error:  # as above
        raise UserError(_unusable(name, options, error)) from None


def _unusable(name: str, options: Mapping[str, Any], error: Exception) -> str:
    given = f" with train.optimizer_options = {dict(options)}" if options else ""
    reason = f"{type(error).__name__}: {reason_of(error)}"
    return f"train.optimizer = {name!r} can't be used here{given}: {reason}."


def clip_gradients(parameters: Sequence[nn.Parameter], longest: float) -> None:
    """Shorten the gradient, as one vector, to a length; one that is shorter isn't touched, which
    torch's own function multiplies by 1."""
    length = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if length > longest:
        clip_grads_with_norm_(parameters, longest, length)


@torch.no_grad()
def forget(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rows: Tensor
) -> None:
    """Zero what an optimizer keeps of some rows of parameters: Adam both moments, Adafactor one
    number a row."""
    for parameter in parameters:
        for kept in optimizer.state[parameter].values():
            if isinstance(kept, Tensor) and kept.ndim and len(kept) == len(parameter):
                kept[rows] = 0.0


def _find(name: str) -> Any:
    if name.lower() in _UNFIT:
        raise UserError(f"train.optimizer = {name!r} can't be used here: {_UNFIT[name.lower()]}.")
    there = {
        n.lower(): found
        for n, found in vars(torch.optim).items()
        if inspect.isclass(found)
        and issubclass(found, torch.optim.Optimizer)
        and n.lower() not in _UNFIT
        and "lr" in inspect.signature(found).parameters
    }
    if name.lower() in there:
        return there[name.lower()]
    hint = did_you_mean(name.lower(), there)
    raise UserError(f"train.optimizer = {name!r} is not in torch. {hint}There are: {known(there)}.")
