"""A loaded SAE as a user meets it: what it is, where it belongs, and what it doesn't read."""

import json
from importlib.metadata import version

import pytest
import torch
from peers import peer
from saved_saes import CASES, saved

import sae_mlflow
from sae_mlflow import load_sae
from sae_mlflow.architectures import StoredKind, parse_stored, stored_names
from sae_mlflow.errors import UserError
from sae_mlflow.formats.sae_files import FORMATS, export_sae, read_stored


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sae"


def test_a_stored_name_says_its_codes_and_what_they_are_for():
    assert parse_stored("topk") == StoredKind("topk", transcodes=False, skip=False)
    assert parse_stored("topk_transcoder") == StoredKind("topk", transcodes=True, skip=False)
    assert parse_stored("topk_skip_transcoder") == StoredKind("topk", transcodes=True, skip=True)
    assert parse_stored("my_skip") == StoredKind("my_skip", transcodes=False, skip=False)
    for name in (*stored_names(), "my_skip"):
        assert parse_stored(name).name == name


@pytest.mark.parametrize(
    ("case", "place"),
    [
        ("topk", {"layer": 10, "hookpoints_in": ["layers.10"], "hookpoints_out": ["layers.10"]}),
        (
            "topk_transcoder",
            {"layer": 10, "hookpoints_in": ["layers.10:input"], "hookpoints_out": ["layers.10"]},
        ),
        ("crosscoder", {"hookpoints_in": ["layers.10", "layers.15"]}),
    ],
)
def test_it_knows_where_it_belongs(case, place, folder):
    saved(folder, case)
    about = load_sae(folder).metadata
    assert place.items() <= about.items()
    assert about["model_name"] == "org/model"
    assert ("layer" in about) == (case != "crosscoder")


def test_so_does_one_that_saelens_wrote(folder):
    lens = peer("sae_lens")
    config = lens.TopKSAEConfig(d_in=4, d_sae=8, k=2)
    config.metadata.model_name, config.metadata.hook_name = "gpt2", "blocks.7.hook_resid_pre"
    lens.TopKSAE(config).save_model(folder)
    about = load_sae(folder).metadata
    assert about["layer"] == 7
    assert (about["model_name"], about["hook_name"]) == ("gpt2", "blocks.7.hook_resid_pre")


def test_so_does_one_of_dictionary_learning(folder):
    saved(folder)
    out = folder.with_name("out")
    export_sae(read_stored(folder)[0], "dictionary_learning", out)
    about = {"model_name": "org/model", "hook_name": "layers.10", "layer": 10}
    assert load_sae(out).metadata == about
    config = json.loads((out / "config.json").read_text())
    for key in ("lm_name", "submodule_name", "layer"):
        del config["trainer"][key]
    (out / "config.json").write_text(json.dumps(config))
    assert load_sae(out).metadata == {}


@pytest.mark.parametrize("format_name", FORMATS)
def test_where_nothing_is_said_nothing_is_known(format_name, folder):
    _, acts = saved(folder)
    stored, _ = read_stored(folder)
    stored.config["metadata"] = {}
    out = folder.with_name("out")
    export_sae(stored, format_name, out)
    sae = load_sae(out)
    assert sae.metadata.keys() <= {"sae_lens_version"}
    assert sae.encode(acts).shape == (37, 96)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("topk", "TopKSAE(topk, d_in=10, d_sae=96, k=5)"),
        ("gated", "GatedSAE(gated, d_in=10, d_sae=96)"),
        (
            "jumprelu_skip_transcoder",
            "JumpReLUSAE(jumprelu_skip_transcoder, d_in=10, d_sae=96, d_out=7)",
        ),
        ("crosscoder", "CrosscoderSAE(crosscoder, d_in=10, d_sae=96, widths=[4, 6])"),
    ],
)
def test_printed_it_says_its_kind_and_sizes(case, said, folder):
    saved(folder, case)
    assert str(load_sae(folder)) == said


@pytest.mark.parametrize("case", CASES)
def test_acts_of_another_width_are_named_with_the_one_it_reads(case, folder):
    """20 numbers would be two tokens of 10."""
    saved(folder, case)
    sae = load_sae(folder)
    for use in (sae.encode, sae):
        with pytest.raises(UserError, match=r"acts are \[3, 20\], but this SAE reads \[..., 10\]"):
            use(torch.zeros(3, 20))
    with pytest.raises(UserError, match=r"acts are \[\], but"):
        sae.encode(torch.tensor(0.0))


def test_acts_are_converted_where_that_loses_nothing(folder):
    _, acts = saved(folder)
    sae = load_sae(folder)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = acts.to(dtype)
        assert torch.equal(sae.encode(rounded), sae.encode(rounded.float()))
        assert torch.equal(sae(rounded), sae(rounded.float()))
    assert sae.encode(acts.bfloat16()).dtype == torch.float32


def test_acts_that_would_be_rounded_are_refused_with_both_ways_out(folder):
    _, acts = saved(folder)
    sae = load_sae(folder)
    said = r"acts are float64, but this SAE is float32. Give it acts.to\(torch.float32\), or .*"
    for use in (sae.encode, sae):
        with pytest.raises(UserError, match=said + r"sae.double\(\)"):
            use(acts.double())
    with pytest.raises(UserError, match="acts are int64, but this SAE is float32"):
        sae.encode(torch.zeros(3, 10, dtype=torch.int64))
    exact = sae.double().encode(acts.double())
    torch.testing.assert_close(exact.float(), load_sae(folder).encode(acts))


def test_a_skip_transcoder_asks_for_what_it_read(folder):
    _, acts = saved(folder, "topk_skip_transcoder")
    sae = load_sae(folder)
    with pytest.raises(UserError, match=r"decode\(latents, acts\)"):
        sae.decode(sae.encode(acts))


def test_a_device_that_is_not_here_is_refused_before_anything_is_read(folder):
    with pytest.raises(UserError, match="^device = 'cuda:99' is not here. There are: auto, .*cpu"):
        load_sae(folder, device="cuda:99")


def test_the_version_is_the_installed_packages():
    assert sae_mlflow.__version__ == version("sae-mlflow")
