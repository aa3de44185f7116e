"""Peers' own loaders as oracles: ours opened by them, and theirs by us, do the same."""

import pytest
import torch
from peers import peer
from safetensors.torch import load_file, save_file
from saved_saes import CASES, assert_same_latents, assert_same_recon, change_config, saved

from sae_mlflow import load_sae
from sae_mlflow.errors import UserError
from sae_mlflow.formats.sae_files import export_sae, read_stored

IN_SAE_LENS = [
    case for case in CASES if not case.startswith("topk_") and case not in ("crosscoder",)
]
IN_SPARSIFY = ["topk", "topk_transcoder", "topk_skip_transcoder"]
SQUARE = {"d_out": 10}  # sparsify's transcoders write as many dimensions as they read


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sae"


def sae_lens(folder):
    """An SAE as SAELens loads it, and what it does to a batch."""
    sae = peer("sae_lens").SAE.load_from_disk(folder)
    return sae, lambda acts: (sae.encode(acts), sae(acts))


def sparsify(folder):
    sae = peer("sparsify").SparseCoder.load_from_disk(folder)

    def run(acts):
        values, indices, pre_acts = sae.encode(acts)
        latents = torch.zeros_like(pre_acts).scatter(1, indices, values)
        recon = sae.decode(values, indices)  # forward() asks CUDA about bfloat16
        return latents, recon if sae.W_skip is None else recon + acts @ sae.W_skip.mT

    return sae, run


@torch.no_grad()
def assert_same(run, ours, acts):
    latents, recon = run(acts)
    assert_same_latents(latents, ours.encode(acts))
    assert_same_recon(recon, ours(acts))


@pytest.mark.parametrize("case", IN_SAE_LENS)
def test_saelens_opens_what_a_run_stores_as_it_is(case, folder):
    trained, acts = saved(folder, case)
    theirs, run = sae_lens(folder)
    ours = load_sae(folder)
    assert_same(run, ours, acts)
    assert_same_latents(ours.encode(acts), trained.encode(acts * 0.037))
    assert theirs.cfg.metadata.hook_name.startswith("blocks.10.")
    assert theirs.cfg.metadata.model_name == "org/model"


@pytest.mark.parametrize("case", IN_SAE_LENS)
def test_what_saelens_writes_is_opened_here(case, folder, tmp_path):
    _, acts = saved(folder, case)
    theirs, run = sae_lens(folder)
    theirs.save_model(tmp_path / "theirs")
    assert_same(run, load_sae(tmp_path / "theirs"), acts)


@pytest.mark.parametrize("case", ["standard", "topk", "jumprelu", "gated"])
def test_one_of_saelens_that_subtracts_nothing_is_opened(case, folder):
    _, acts = saved(folder, case)
    change_config(folder, apply_b_dec_to_input=False)
    _, run = sae_lens(folder)
    assert_same(run, load_sae(folder), acts)


def test_topk_of_saelens_that_weighs_latents_by_decoder_norms_is_opened(folder):
    _, acts = saved(folder, "topk")
    plain = load_sae(folder).encode(acts)
    change_config(folder, rescale_acts_by_decoder_norm=True)
    _, run = sae_lens(folder)
    assert not torch.equal(run(acts)[0] > 0, plain > 0)
    assert_same(run, load_sae(folder), acts)


@pytest.mark.parametrize("case", ["jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_relu_transcoders_of_saelens_are_opened(case, folder):
    _, acts = saved(folder, case, bias=-3.0)
    change_config(folder, architecture=case.removeprefix("jumprelu_"))
    weights = load_file(folder / "sae_weights.safetensors")
    del weights["threshold"]
    save_file(weights, folder / "sae_weights.safetensors")
    _, run = sae_lens(folder)
    assert_same(run, load_sae(folder), acts)


@pytest.mark.parametrize("case", IN_SPARSIFY)
def test_sparsify_opens_our_export_and_we_what_it_writes(case, folder, tmp_path):
    trained, acts = saved(folder, case, **({} if case == "topk" else SQUARE))
    export_sae(read_stored(folder)[0], "sparsify", tmp_path / "out")
    theirs, run = sparsify(tmp_path / "out")
    assert_same(run, load_sae(folder), acts)
    theirs.save_to_disk(tmp_path / "theirs")
    assert_same(run, load_sae(tmp_path / "theirs"), acts)
    assert (theirs.d_in, theirs.num_latents, theirs.cfg.k) == (10, 96, trained.k)


def test_sparsifys_default_number_of_latents_is_understood(folder):
    module = peer("sparsify")
    config = module.SparseCoderConfig(k=4, expansion_factor=6)
    module.SparseCoder(10, config).save_to_disk(folder)
    sae = load_sae(folder)
    assert (sae.d_sae, sae.k) == (60, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "groupmax"}, "activation = 'groupmax' can't be read, only 'topk'"),
        ({"skip_connection": True}, "skip_connection without transcode can't be read"),
    ],
)
def test_what_only_sparsify_can_do_is_refused(options, message, folder):
    module = peer("sparsify")
    config = module.SparseCoderConfig(k=4, expansion_factor=6, **options)
    module.SparseCoder(10, config).save_to_disk(folder)
    with pytest.raises(UserError, match=message):
        load_sae(folder)
