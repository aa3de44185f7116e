"""dictionary_learning's files, by a reader written from the formulas of its version 0.1.

Its wheel pins an old nnsight, so it isn't installed here; the reader was compared with it once.
"""

import json

import pytest
import torch
from saved_saes import assert_same_latents, assert_same_recon, saved

from sae_mlflow import load_sae
from sae_mlflow.errors import UserError
from sae_mlflow.formats.sae_files import export_sae, read_stored


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sae"


def exported(folder):
    out = folder.with_name("out")
    export_sae(read_stored(folder)[0], "dictionary_learning", out)
    return out


def dictionary(folder):
    """The trainer's config, and what gives latents and reconstruction of a batch."""
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    p = torch.load(folder / "ae.pt", weights_only=True)
    name = trainer["dict_class"]
    assert p.get("k", torch.tensor(0)) == trainer.get("k", 0)

    def linear(acts, layer):
        return acts @ p[f"{layer}.weight"].t() + p.get(f"{layer}.bias", 0)

    def run(acts):
        match name:
            case "AutoEncoderNew":
                latents = linear(acts, "encoder").relu()
                return latents, linear(latents, "decoder")
            case "AutoEncoder":  # its loader stretches latents by what it takes from decoder rows
                lengths = p["decoder.weight"].norm(dim=0)
                latents = linear(acts - p["bias"], "encoder").relu() * lengths
                return latents, linear(latents / lengths, "decoder") + p["bias"]
            case "AutoEncoderTopK":
                latents = linear(acts - p["b_dec"], "encoder").relu()
                values, indices = latents.topk(trainer["k"])
                latents = torch.zeros_like(latents).scatter(1, indices, values)
                return latents, linear(latents, "decoder") + p["b_dec"]
            case "BatchTopKSAE":
                latents = linear(acts - p["b_dec"], "encoder").relu()
                latents = latents * (latents > p["threshold"])
                return latents, linear(latents, "decoder") + p["b_dec"]
            case "MatryoshkaBatchTopKSAE":
                latents = ((acts - p["b_dec"]) @ p["W_enc"] + p["b_enc"]).relu()
                latents = latents * (latents > p["threshold"])
            case "JumpReluAutoEncoder":
                pre_acts = acts @ p["W_enc"] + p["b_enc"]
                latents = (pre_acts * (pre_acts > p["threshold"])).relu()
            case "GatedAutoEncoder":
                shared = linear(acts - p["decoder_bias"], "encoder")
                magnitudes = (p["r_mag"].exp() * shared + p["mag_bias"]).relu()
                latents = (shared + p["gate_bias"] > 0) * magnitudes
                return latents, linear(latents, "decoder") + p["decoder_bias"]
        return latents, latents @ p["W_dec"] + p["b_dec"]

    return trainer, run


CLASSES = {
    "standard": "AutoEncoderNew",
    "topk": "AutoEncoderTopK",
    "batchtopk": "BatchTopKSAE",
    "matryoshka": "BatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
}


@pytest.mark.parametrize("case", CLASSES)
def test_dictionary_learning_gets_the_class_that_computes_the_same(case, folder):
    _, acts = saved(folder, case)
    trainer, run = dictionary(exported(folder))
    latents, recon = run(acts)
    ours = load_sae(folder)
    assert_same_latents(latents, ours.encode(acts))
    assert_same_recon(recon, ours(acts))
    assert trainer["dict_class"] == CLASSES[case]
    assert (trainer["activation_dim"], trainer["dict_size"]) == (10, 96)
    assert (trainer["layer"], trainer["lm_name"]) == (10, "org/model")


def theirs(folder, name):
    """Files of a class of dictionary_learning, with random weights."""
    generator = torch.Generator().manual_seed(1)
    sparser = {"encoder.bias": -2.0, "b_enc": -2.0, "gate_bias": -2.0}
    D, F = (10,), (96,)
    linear = {"encoder.weight": (96, 10), "encoder.bias": F, "decoder.weight": (10, 96)}
    plain = {"W_enc": (10, 96), "b_enc": F, "W_dec": (96, 10), "b_dec": D}
    shapes = {
        "AutoEncoder": linear | {"bias": D},
        "AutoEncoderNew": linear | {"decoder.bias": D},
        "AutoEncoderTopK": linear | {"b_dec": D},
        "BatchTopKSAE": linear | {"b_dec": D},
        "MatryoshkaBatchTopKSAE": plain,
        "JumpReluAutoEncoder": plain | {"threshold": F},
        "GatedAutoEncoder": {
            "encoder.weight": (96, 10),
            "decoder.weight": (10, 96),
            "decoder_bias": D,
            "r_mag": F,
            "gate_bias": F,
            "mag_bias": F,
        },
    }[name]
    state = {
        key: torch.randn(shape, generator=generator) * 0.5 + sparser.get(key, 0.0)
        for key, shape in shapes.items()
    }
    trainer = {"dict_class": name}
    if "TopK" in name:
        state |= {"k": torch.tensor(5, dtype=torch.int), "threshold": torch.tensor(0.3)}
        trainer["k"] = 5
    if name.startswith("Matryoshka"):
        state["group_sizes"] = torch.tensor([32, 64])
    folder.mkdir()
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return torch.randn(37, 10, generator=generator)


ALL_CLASSES = ["AutoEncoder", "MatryoshkaBatchTopKSAE", *sorted(set(CLASSES.values()))]


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_every_class_of_dictionary_learning_is_opened(name, folder):
    acts = theirs(folder, name)
    latents, recon = dictionary(folder)[1](acts)
    assert_same_latents(load_sae(folder).encode(acts), latents)
    assert_same_recon(load_sae(folder)(acts), recon)


def test_a_batchtopk_dictionary_whose_threshold_was_never_set_keeps_all_that_is_positive(folder):
    acts = theirs(folder, "BatchTopKSAE")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    assert_same_latents(load_sae(folder).encode(acts), dictionary(folder)[1](acts)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.bias": None}, "ae.pt isn't a whole AutoEncoder: it has no encoder.bias"),
        ({"encoder.bias": torch.zeros(95)}, r"b_enc is \[95\], but W_enc is \[10, 96\]"),
        ({"encoder.weight": torch.zeros(96)}, "W_enc is no matrix"),
    ],
)
def test_a_dictionary_that_lacks_something_is_refused(change, message, folder):
    theirs(folder, "AutoEncoder")
    state = torch.load(folder / "ae.pt", weights_only=True) | change
    torch.save({k: v for k, v in state.items() if v is not None}, folder / "ae.pt")
    with pytest.raises(UserError, match=message):
        load_sae(folder)


def test_a_dictionary_of_an_unknown_class_is_refused_with_the_known_ones(folder):
    theirs(folder, "AutoEncoder")
    (folder / "config.json").write_text('{"trainer": {"dict_class": "CrossCoder"}}')
    with pytest.raises(UserError, match="dict_class = 'CrossCoder' can't be read. Known: AutoEnco"):
        load_sae(folder)
