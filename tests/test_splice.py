"""Putting something in at a hookpoint: nothing else changes, and no block runs needlessly."""

import pytest
import torch
from spliced_models import CONTEXT, D_MODEL, VOCABULARY, gemma3n, tiny_lm

from sae_mlflow.evaluation.splice import Splicer, norm_caps, spliced_rows

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.randint(1, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
SITES = [("layers.2",), ("layers.0",), ("layers.3",), ("layers.2.mlp",), ("layers.1", "layers.3")]


def rows_of_every_third() -> torch.Tensor:
    rows = torch.zeros(IDS.numel(), dtype=torch.bool)
    rows[1::3] = True
    return rows


def hooked_logits(lm, writes, rows):
    """The oracle: a whole forward pass with plain hooks of the test's own."""

    def put(values):
        def hook(_module, _args, output):
            acts = (output[0] if isinstance(output, tuple) else output).clone()
            acts[rows.view(acts.shape[:2])] = values
            return (acts, *output[1:]) if isinstance(output, tuple) else acts

        return hook

    handles = [lm.module(h).register_forward_hook(put(values)) for h, values in writes.items()]
    with torch.no_grad():
        logits = lm.model(IDS, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def resumed(splicer, writes, rows):
    block = splicer.resume_block(writes)
    acts = splicer.lm.activations(IDS, [f"layers.{block}"])[f"layers.{block}"]
    return splicer.logits(IDS, writes, rows, resume=(block, acts))


def random_writes(hookpoints, rows):
    generator = torch.Generator().manual_seed(2)
    n = int(rows.sum())
    return {h: torch.randn(n, D_MODEL, generator=generator) for h in hookpoints}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("hookpoints", SITES, ids="+".join)
def test_going_on_from_a_block_gives_the_logits_of_a_whole_pass(architecture, hookpoints):
    lm = tiny_lm(architecture)
    rows = rows_of_every_third()
    writes = random_writes(hookpoints, rows)
    expected = hooked_logits(lm, writes, rows)
    assert torch.equal(resumed(Splicer(lm), writes, rows), expected)
    assert torch.equal(Splicer(lm).logits(IDS, writes, rows), expected)
    assert not torch.allclose(expected, hooked_logits(lm, {}, rows))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_model_is_whole_again_afterwards(architecture):
    lm = tiny_lm(architecture)
    before = hooked_logits(lm, {}, rows_of_every_third())
    rows = rows_of_every_third()
    resumed(Splicer(lm), random_writes(["layers.2"], rows), rows)
    assert not any(m._forward_hooks or "forward" in m.__dict__ for m in lm.model.modules())
    assert torch.equal(hooked_logits(lm, {}, rows), before)


@pytest.mark.parametrize(
    ("hookpoints", "block"),
    [
        (["layers.2"], 2),  # its own output is known before it is replaced
        (["layers.2.mlp"], 1),
        (["layers.1", "layers.3"], 1),
        (["layers.3", "layers.1.self_attn"], 0),
        (["layers.0.mlp"], None),
        (["embed_tokens"], None),
        (["layers.2", "embed_tokens"], None),
    ],
)
def test_a_pass_goes_on_after_the_last_block_that_stays_the_same(hookpoints, block):
    assert Splicer(tiny_lm("llama")).resume_block(hookpoints) == block


def test_no_block_before_the_spliced_one_runs():
    lm = tiny_lm("llama")
    splicer, rows = Splicer(lm), rows_of_every_third()
    writes = random_writes(["layers.2"], rows)
    acts = lm.activations(IDS, ["layers.2"])["layers.2"]
    assert splicer.resume_block(writes) == 2
    ran = []
    for i, block in enumerate(lm.module("layers")):
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    splicer.logits(IDS, writes, rows, resume=(2, acts))
    assert ran == [3]


def test_positions_that_are_not_replaced_are_the_same_bits():
    lm = tiny_lm("llama")
    rows = rows_of_every_third()
    seen = {}
    clean = lm.activations(IDS, ["layers.2"])["layers.2"]
    splicer, writes = Splicer(lm), random_writes(["layers.2"], rows)
    lm.module("layers.3").register_forward_pre_hook(lambda _m, args: seen.update(into=args[0]))
    resumed_logits = resumed(splicer, writes, rows)
    into = seen["into"].reshape(-1, D_MODEL)
    assert torch.equal(into[~rows], clean[~rows])
    assert torch.equal(into[rows], writes["layers.2"])
    assert resumed_logits.shape == (3, CONTEXT, VOCABULARY)


def test_blocks_that_put_out_tuples_are_passed_over_too():
    rows = rows_of_every_third()
    writes = random_writes(["layers.2"], rows)
    expected = hooked_logits(tiny_lm("llama"), writes, rows)
    lm = tiny_lm("llama")
    for block in lm.module("layers"):
        own = block.forward
        block.forward = lambda x, *a, own=own, **k: (own(_first(x), *a, **k), None)
    lm.model.model.norm.register_forward_pre_hook(lambda _m, args: (_first(args[0]),))
    assert torch.equal(resumed(Splicer(lm), writes, rows), expected)
    assert all("forward" in block.__dict__ for block in lm.module("layers"))  # put back


def _first(x):
    return x[0] if isinstance(x, tuple) else x


def test_a_model_whose_blocks_look_further_back_runs_whole():
    """Block 3 adds what block 0 left behind; that isn't in block 2's output."""
    lm = tiny_lm("llama")
    blocks = lm.module("layers")
    left = {}
    lm.model.register_forward_pre_hook(lambda *_: left.clear())
    own0, own3 = blocks[0].forward, blocks[3].forward

    def leave(x, *args, **kwargs):
        left["behind"] = own0(x, *args, **kwargs)
        return left["behind"]

    def add(x, *args, **kwargs):
        return own3(x, *args, **kwargs) + left.get("behind", 0.0)

    blocks[0].forward, blocks[3].forward = leave, add
    assert Splicer(lm).resume_block(["layers.2"]) is None


def test_a_model_whose_blocks_put_out_several_streams_runs_whole():
    lm, rows = gemma3n(), rows_of_every_third()
    writes = random_writes(["layers.2.mlp"], rows)
    splicer = Splicer(lm)
    assert splicer.resume_block(writes) is None
    expected = hooked_logits(lm, writes, rows)
    assert torch.equal(splicer.logits(IDS, writes, rows), expected)
    assert not torch.allclose(expected, hooked_logits(lm, {}, rows))


def test_giant_norms_special_tokens_and_norms_that_are_no_number_pass_through():
    acts = {"a": torch.tensor([[3.0, 4.0], [30.0, 40.0], [3.0, 4.0], [float("nan"), 0.0]])}
    kept = torch.tensor([True, True, False, True])
    assert spliced_rows(acts, kept, {"a": 5.0}).tolist() == [True, False, False, False]
    assert spliced_rows(acts, kept, {"a": 50.0}).tolist() == [True, True, False, False]
    acts["b"] = torch.tensor([[9.0], [1.0], [1.0], [1.0]])
    assert not spliced_rows(acts, kept, {"a": 5.0, "b": 5.0}).any()


def test_the_cap_is_a_multiple_of_the_median_norm_of_the_kept_tokens():
    lm = tiny_lm("llama")
    kept = torch.ones(IDS.numel(), dtype=torch.bool)
    kept[::CONTEXT] = False
    batches = [(IDS[:2], kept[: 2 * CONTEXT]), (IDS[2:], kept[2 * CONTEXT :])]
    norms = lm.activations(IDS, ["layers.1"])["layers.1"][kept].norm(dim=1)
    caps = norm_caps(lm, batches, ["layers.1"], max_norm_ratio=3.0)
    assert caps == {"layers.1": pytest.approx(3 * norms.median().item())}


def test_without_a_token_nothing_is_within_the_cap():
    lm = tiny_lm("llama")
    nothing = [(IDS, torch.zeros(IDS.numel(), dtype=torch.bool))]
    for batches in ([], nothing):
        (cap,) = norm_caps(lm, batches, ["layers.1"], max_norm_ratio=3.0).values()
        assert cap < 0
