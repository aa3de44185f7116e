"""The vocabulary items that a direction in the residual stream points to (the logit lens).

nostalgebraist 2020, "interpreting GPT: the logit lens": a direction is read as if it were what
comes out of the last block, through the LM's own final norm and head.
"""

import torch
from torch import Tensor

from sae_mlflow import naming
from sae_mlflow.evaluation.splice import Splicer, block_output

_AT_ONCE = 64


def is_of_residual_stream(hookpoint: str) -> bool:
    """Whether a direction there is one of the residual stream, where it is as wide.

    So are what a block, its own attention, MLP and norms, and modules outside the blocks put out.
    What lies within those (`layers.10.self_attn.q_proj`) may be as wide by chance.
    """
    inside = naming.block_number(hookpoint) is not None
    return hookpoint.count(".") <= (2 if inside else 0)


@torch.inference_mode()
def nearest_tokens(splicer: Splicer, directions: Tensor, n: int) -> list[list[int]]:
    """The n token ids whose logits each direction raises most, the most first.

    A logit's change is counted from the residual stream at 0, so that biases of norm and head,
    which are the same for all directions, don't decide.

    Args:
        directions: `[count, d]`.

    Returns:
        For each direction its tokens; none where d isn't the LM's width, or the LM can't be read
        from its last block on.
    """
    config = splicer.lm.model.config.get_text_config()
    last = config.num_hidden_layers - 1
    readable = len(directions) > 0 and directions.shape[1] == config.hidden_size
    if not readable or splicer.resume_block([block_output(last)]) is None:
        return [[] for _ in directions]
    # as long as a residual stream of mean square 1: next to it the norm's epsilon is nothing
    unit = torch.nn.functional.normalize(directions.float(), dim=1) * config.hidden_size**0.5
    at_zero = _logits(splicer, last, torch.zeros_like(unit[:1]))
    tokens: list[list[int]] = []
    for some in unit.split(_AT_ONCE):
        raised = _logits(splicer, last, some) - at_zero
        tokens += raised.topk(min(n, raised.shape[1]), dim=1).indices.tolist()
    return tokens


def _logits(splicer: Splicer, block: int, residual: Tensor) -> Tensor:
    """float32 `[count, vocabulary]`: each row as a text of one token."""
    ids = torch.zeros(len(residual), 1, dtype=torch.long)
    acts = residual.to(splicer.lm.device, splicer.lm.model.dtype)
    return splicer.logits(ids, resume=(block, acts))[:, 0].float()
