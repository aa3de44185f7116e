"""The LM with something standing in at its hookpoints: outputs replaced on the way to the logits.

What is replaced is said position by position. Everything else passes through untouched, bit for
bit: special tokens, first positions and giant norms, which no SAE was trained on (`spliced_rows`).
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sae_mlflow import naming
from sae_mlflow.activations.norms import norm_cap
from sae_mlflow.lm.hookpoints import LanguageModel

_PROBE_TOKENS = 8


class Splicer:
    """An LM that goes on from a block whose output is known, with some activations replaced.

    Blocks before the first one that changes needn't run again: their `forward` is put aside for
    the pass, and the last of them puts out what it put out before. Where that doesn't give an LM's
    own logits back (a model whose later blocks look further back than one), every pass is a whole
    one.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._blocks: list[nn.Module] = list(lm.module("layers").children())
        self._wraps: dict[int, Callable[[Tensor], Any] | None] = {}

    def resume_block(self, writes: Iterable[str]) -> int | None:
        """The last block whose output is the same whatever is put in at `writes`.

        For `layers.10` that is 10 itself, whose output is known before it is replaced; for
        `layers.10.mlp` it is 9. None where a pass has to run from the start.
        """
        last = len(self._blocks) - 1
        for hookpoint in writes:
            block = naming.block_number(hookpoint)
            if block is None:
                return None
            last = min(last, block if hookpoint == block_output(block) else block - 1)
        return last if last >= 0 and self._wrap(last) else None

    @torch.inference_mode()
    def logits(
        self,
        token_ids: Tensor,
        writes: Mapping[str, Tensor] | None = None,
        rows: Tensor | None = None,
        resume: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """One forward pass.

        Args:
            token_ids: `[batch, context]`.
            writes: by hookpoint, what its module is to put out at `rows`: `[n, d]`.
            rows: bool `[batch * context]`, n of them true; elsewhere outputs stay what they are.
            resume: a block of `resume_block` and the output `[batch * context, d_model]` that it
                puts out, before anything in `writes` is put in; nothing before it runs.

        Returns:
            `[batch, context, vocabulary]`, in the LM's dtype.
        """
        with ExitStack() as stack:
            if resume is not None:
                block, acts = resume
                wrap = self._wrap(block)
                assert wrap is not None, "resume_block comes first"
                # a copy: the next block may work in place
                output = wrap(acts.reshape(*token_ids.shape, -1).clone())
                for skipped in self._blocks[: block + 1]:
                    _put_out(stack, skipped, output)
            for hookpoint, values in (writes or {}).items():
                assert rows is not None
                hook = _replacing(rows, values)
                stack.callback(self.lm.module(hookpoint).register_forward_hook(hook).remove)
            return self.lm.model(input_ids=token_ids.to(self.lm.device), use_cache=False).logits

    def _wrap(self, block: int) -> Callable[[Tensor], Any] | None:
        """Makes a block's output of its activations; None where a pass can't go on from there."""
        if block not in self._wraps:
            self._wraps[block] = self._probed(block)
        return self._wraps[block]

    @torch.inference_mode()
    def _probed(self, block: int) -> Callable[[Tensor], Any] | None:
        """Find out on a few tokens whether going on from a block gives the whole pass's logits."""
        vocabulary = self.lm.model.config.get_text_config().vocab_size
        ids = torch.arange(_PROBE_TOKENS).remainder(vocabulary)[None]
        seen: list[Any] = []
        handle = self._blocks[block].register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            whole = self.logits(ids)
        finally:
            handle.remove()
        output, *rest = seen[0] if isinstance(seen[0], tuple) else (seen[0],)
        if not isinstance(output, Tensor) or output.shape[:-1] != ids.shape:
            return None  # of Gemma 3n several streams
        if any(value is not None for value in rest):
            return None  # what else a block hands on isn't kept
        self._wraps[block] = (lambda a: (a, *rest)) if isinstance(seen[0], tuple) else (lambda a: a)
        acts = self.lm.activations(ids, [block_output(block)])[block_output(block)]
        same = torch.equal(self.logits(ids, resume=(block, acts)), whole)
        return self._wraps[block] if same else None


def spliced_rows(acts: Mapping[str, Tensor], kept: Tensor, caps: Mapping[str, float]) -> Tensor:
    """Which positions an SAE stands in at: bool `[batch * context]`.

    Args:
        acts: the clean activations `[batch * context, d]` by hookpoint.
        kept: bool `[batch * context]`, neither special tokens nor first positions.
        caps: the largest norm at each hookpoint of the site; a position over any one of them
            passes through at all of them.
    """
    for hookpoint, cap in caps.items():
        # a norm that isn't a number is not within the cap
        kept = kept & (acts[hookpoint].float().norm(dim=1) <= cap)
    return kept


def norm_caps(
    lm: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    hookpoints: Iterable[str],
    max_norm_ratio: float,
) -> dict[str, float]:
    """The largest norm that isn't giant, by hookpoint: a multiple of the median over the tokens.

    Below 0 where no token counts.

    Args:
        batches: token ids `[batch, context]`, and bool `[batch * context]` of those that count.
        max_norm_ratio: `activations.max_norm_ratio`.
    """
    norms = {hookpoint: [torch.empty(0)] for hookpoint in hookpoints}
    for token_ids, kept in batches:
        acts = lm.activations(token_ids, norms)
        for hookpoint, found in norms.items():
            found.append(acts[hookpoint][kept].float().norm(dim=1).cpu())
    return {h: norm_cap(torch.cat(found), max_norm_ratio) for h, found in norms.items()}


def block_output(block: int) -> str:
    return f"layers.{block}"


def _put_out(stack: ExitStack, module: nn.Module, output: Any) -> None:
    """Let a module put out `output` whatever comes in, until the stack is left."""
    own = module.__dict__.get("forward")  # there where accelerate has put a wrapper
    module.forward = lambda *_, **__: output
    if own is None:
        stack.callback(delattr, module, "forward")
    else:
        stack.callback(setattr, module, "forward", own)


def _replacing(rows: Tensor, values: Tensor) -> Any:
    done = False

    def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
        nonlocal done
        if done:
            return output  # of a module that several blocks share, the first call counts
        done = True
        acts = output[0] if isinstance(output, tuple) else output
        flat = acts.reshape(-1, acts.shape[-1]).clone()
        flat[rows] = values.to(flat)
        new = flat.view_as(acts)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook
