"""Settings: where a config is found, how it is put together, and what is said of a wrong one."""

import math

import pytest
import yaml

from sae_mlflow import architectures
from sae_mlflow.commands.train import train_command
from sae_mlflow.config import Settings
from sae_mlflow.config_files import find_config
from sae_mlflow.config_load import load_settings, setting_docs
from sae_mlflow.config_set import parse_set
from sae_mlflow.errors import UserError
from sae_mlflow.lm.sites import sites
from sae_mlflow.plots.choice import parse_layers


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("architecture", architectures.NAMES)
def test_there_is_a_config_for_every_architecture(folder, architecture):
    settings = load_settings(f"sae_{architecture}")
    assert settings.sae.architecture == architecture
    assert len(sites(settings)) == (1 if architecture == "crosscoder" else 3)


def test_the_sparse_and_the_dense_config_differ_from_the_balanced_one_in_k_alone(folder):
    balanced = load_settings("sae_balanced").flat()
    for name, k in (("sae_sparse", 8), ("sae_dense", 128)):
        assert load_settings(name).flat() == balanced | {"sae.k": k}


def test_the_shipped_configs_are_valid_and_three_of_them_extend_the_first(folder):
    assert load_settings("sae_balanced.yaml").model.layers == (10, 15, 20)
    for name in ("sae_quick", "llama2", "mistral"):
        text = find_config(name).read_text(encoding="utf-8")
        assert yaml.safe_load(text)["extends"] == "sae_balanced.yaml"
        assert load_settings(name).sae.k == 32
    assert load_settings("llama2").model.name == "meta-llama/Llama-2-7b-hf"
    assert load_settings("llama2").experiment == "llama2"
    assert load_settings("mistral").model.name == "mistralai/Mistral-7B-v0.1"
    assert load_settings("mistral").experiment == "mistral"


@pytest.mark.parametrize(
    "name",
    [
        "sae_quick",
        "sae_quick.yaml",
        "configs/sae_quick.yaml",
        "configs/sae/sae_quick.yaml",
        "./sae_quick.yaml",
    ],
)
def test_a_name_without_a_file_here_means_the_packages_own_config(folder, name):
    assert load_settings(name).experiment == "quick"


def test_configs_in_the_working_folder_win_over_the_packages_own(folder):
    write(folder / "configs/sae_quick.yaml", "experiment: mine")
    assert load_settings("sae_quick").experiment == "mine"


def test_paths_work_relative_and_absolute(folder):
    path = write(folder / "configs/sae/deep.yaml", "experiment: deep")
    assert load_settings("configs/sae/deep.yaml").experiment == "deep"
    assert load_settings("sae/deep").experiment == "deep"
    assert load_settings(str(path)).experiment == "deep"


def test_extends_merges_section_by_section_and_the_nearer_file_wins(folder):
    write(folder / "a.yaml", "sae: {k: 7, expansion_factor: 3}\nseed: 1")
    write(folder / "b.yaml", "extends: a.yaml\nsae: {k: 9}")
    settings = load_settings("b.yaml")
    assert (settings.sae.k, settings.sae.expansion_factor, settings.seed) == (9, 3, 1)


def test_overrides_win_over_files(folder):
    settings = load_settings("sae_quick", parse_set("sae.k=64 train.epochs=3 model.layers=1,4-6"))
    assert (settings.sae.k, settings.train.epochs) == (64, 3)
    assert settings.model.layers == (1, 4, 5, 6)


def test_settings_written_as_a_config_read_back_the_same(folder):
    settings = load_settings("sae_quick", {"model.layers": "3,layers.2.mlp", "output.dir": "x"})
    write(folder / "again.yaml", settings.to_yaml())
    assert load_settings("again.yaml") == settings


def test_every_setting_says_what_it_means_and_has_a_dotted_key_that_is_logged():
    docs = {key: meaning for key, _, meaning in setting_docs()}
    assert all(len(meaning) > 10 for meaning in docs.values())
    assert list(docs) == list(Settings().flat())


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"Config 'x.yaml' not found. There are: .*sae_balanced.yaml"),
        ("", "x.yaml is empty"),
        ("- 1\n- 2", "holds a list, but a config is `key: value` lines"),
        ("sae: [1\nk: }", r"x.yaml \(line 2\) is not valid YAML"),
        ("sae: {kk: 3}", "unknown setting 'sae.kk'. Did you mean sae.k?"),
        ("train: {epoch: 3}", "unknown setting 'train.epoch'. Did you mean train.epochs?"),
        ("epochs: 3", "unknown setting 'epochs'. Did you mean train.epochs?"),
        ("sae: {k: many}", "sae.k = 'many', but input should be a valid integer"),
        ("train: {epochs: -1}", "train.epochs = -1, but input should be greater than 0"),
        ("train: {epochs: 0}", "train.epochs = 0, but"),
        ("sae: {k: 5, d_sae: 4}", "sae.k = 5 is larger than d_sae = 4"),
        (
            "sae: {architecture: jumprelu, target_l0: 5, d_sae: 4}",
            "sae.target_l0 = 5.0 is larger than d_sae = 4",
        ),
        ("sae: {target_l0: .inf}", "sae.target_l0 = inf, but input should be a finite number"),
        ("train: {learning_rate: .inf}", "train.learning_rate = inf, but input should be a finite"),
        ("train: {gradient_clip: .nan}", "train.gradient_clip = nan, but"),
        ("train: {optimizer_options: {betas: [0.9, .nan]}}", "its numbers have to be finite"),
        ("sae: 3", "sae = 3, but"),
        (
            "sae: {architecture: batchtop}",
            r"'batchtop', but there is none. Did you mean batchtopk\? There are: ",
        ),
        ("model: {layers: [3, 3]}", "model.layers names layer3 twice"),
        ("model: {layers: [-1]}", "model.layers = -1, but"),
        ("model: {layers: []}", "model.layers"),
        ("extends: x.yaml", "`extends` comes back to this file"),
        ("extends: gone.yaml", "Config 'gone.yaml' not found"),
        ("extends: gone.yaml", "^x.yaml, extends: "),
        ("sae: 4", r"sae = 4, but it holds settings; set one of them, such as sae.architecture\.$"),
        ("sae: {prefixes: 3}", r"sae.prefixes = 3, but it takes a list, such as \[3\]\. sae.pre"),
        ("experiment:", "experiment = None, but it is empty; give it a value, or leave it away. e"),
        ("sae: {architecture: topK}", r"Did you mean topk\? There are: [a-z_, ]+\.$"),
        ("extends: [a]", "extends = "),
        ("text: {held_out_fraction: 1.5}", "text.held_out_fraction = 1.5, but"),
        ("output: {pt: true}", r"x.yaml: output.pt \(--pt\) writes into output.dir, which isn't"),
        (
            "train: {warmup_fraction: 0.9, schedule: cosine}",
            "train.warmup_fraction = 0.9 and train.decay_fraction = 0.2 are over 1 together",
        ),
    ],
)
def test_a_wrong_config_gets_one_sentence_that_says_what_and_where(folder, text, message):
    if text is not None:
        write(folder / "x.yaml", text)
    with pytest.raises(UserError, match=message) as caught:
        load_settings("x.yaml")
    assert "\n" not in str(caught.value)


def test_the_gradient_alone_may_be_as_long_as_it_likes(folder):
    write(folder / "a.yaml", "train: {gradient_clip: .inf}")
    settings = load_settings("a.yaml")
    assert settings.train.gradient_clip == math.inf
    write(folder / "b.yaml", settings.to_yaml())
    assert load_settings("b.yaml") == settings


@pytest.mark.parametrize(
    "text",
    [
        "output: {pt: true, dir: x}",
        "train: {warmup_fraction: 0.7, decay_fraction: 0.3}",
        "train: {warmup_fraction: 0.9, schedule: constant}",
    ],
)
def test_what_goes_well_together_is_taken(folder, text):
    write(folder / "x.yaml", text)
    assert load_settings("x.yaml")


def test_a_near_miss_of_a_configs_name_is_offered(folder):
    with pytest.raises(UserError, match=r"Did you mean sae_balanced.yaml\?"):
        load_settings("sae_balancd.yaml")


def test_a_name_that_only_ends_like_a_configs_is_near_to_none(folder):
    with pytest.raises(UserError, match=r"^Config 'nope.yaml' not found. There are: "):
        load_settings("nope.yaml")


def test_a_config_that_is_not_text_is_refused(folder):
    (folder / "x.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not a text file"):
        load_settings("x.yaml")


@pytest.mark.parametrize("text", ["sae.k", "=3", "'sae.k=3", "sae.k=[1"])
def test_a_wrong_set_is_refused(text):
    with pytest.raises(UserError, match="--set"):
        parse_set(text)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("sae.k = 4", {"sae.k": 4}),
        ("sae.k =4 seed= 2", {"sae.k": 4, "seed": 2}),
        ("sae.d_sae= sae.k=4", {"sae.d_sae": None, "sae.k": 4}),
        (
            "train.optimizer_options={betas: [0.0, 0.999]} sae.k=4",
            {"train.optimizer_options": {"betas": [0.0, 0.999]}, "sae.k": 4},
        ),
        ("sae.prefixes = [1, 2] seed=3", {"sae.prefixes": [1, 2], "seed": 3}),
        ("text.source='my [1.txt' seed=3", {"text.source": "my [1.txt", "seed": 3}),
    ],
)
def test_set_takes_spaces_around_an_equals_sign_and_within_brackets(text, overrides):
    assert parse_set(text) == overrides


def test_commas_between_settings_are_refused():
    with pytest.raises(UserError, match="^--set: .* has a comma between settings. Part them by sp"):
        parse_set("sae.k=3,train.epochs=4")
    assert parse_set("model.layers=10,15 text.source=a,b") == {
        "model.layers": "10,15",
        "text.source": "a,b",
    }


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match="is a folder. Name a file in it"):
        load_settings(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["sae.k=4 8", "sae.k=4 =8", "experiment=my run", "sae.prefixes=[1, 2"]
)
def test_other_spaces_in_a_set_are_refused(text):
    with pytest.raises(UserError, match="^--set"):
        parse_set(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7-3", "runs backwards; write 3-7"),
        (" ", "names no layer; write 10,15 or 3-7 or layers.10.mlp"),
        ("2,3-", "has '3-', which is no range; write both ends, as in 3-7"),
        ("2,-1", "names layer -1, but they are counted from 0"),
        ("0-999999", "names a layer of over 5 digits, which no model has"),
        ("999999", "names a layer of over 5 digits, which no model has"),
    ],
)
def test_wrong_layers_are_told_alike_wherever_they_are_asked_for(folder, text, message):
    with pytest.raises(UserError) as of_plots:
        parse_layers(text)
    assert str(of_plots.value) == f"--layers {text!r} {message}."
    with pytest.raises(UserError) as of_train:
        train_command(None, layers=text)
    assert str(of_train.value) == str(of_plots.value)
    with pytest.raises(UserError) as of_set:
        load_settings("sae_quick", {"model.layers": text})
    assert str(of_set.value).startswith(f"--set: model.layers = {text!r}, but it {message}. model")


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("sae.l1_coefficient=1", "standard, gated, crosscoder, and sae.architecture is topk."),
        ("sae.architecture=jumprelu sae.k=4", "topk, batchtopk, matryoshka, and .* is jumprelu."),
        ("sae.codes=jumprelu", "transcoder, skip_transcoder, and sae.architecture is topk."),
        (
            "sae.architecture=transcoder sae.bandwidth=1",
            "jumprelu, and sae.architecture is transcoder with codes topk.",
        ),
        ("train.firing_rate=3", "jumprelu, and sae.architecture is topk."),
    ],
)
def test_a_setting_that_the_architecture_doesnt_read_is_refused_where_it_is_asked_for(
    folder, text, who
):
    with pytest.raises(UserError, match=f"^--set: {text.split()[-1].split('=')[0]} is for {who}"):
        load_settings("sae_balanced", parse_set(text))


@pytest.mark.parametrize(
    "text",
    [
        "sae.architecture=jumprelu",  # the config has sae.k
        "sae.architecture=gated sae.l1_coefficient=1 sae.target_l0=null",
        "sae.architecture=transcoder sae.codes=jumprelu sae.target_l0=3 train.firing_rate=2",
        "sae.architecture=skip_transcoder sae.k=3",
    ],
)
def test_a_setting_that_is_inherited_unset_or_read_is_none_of_them(folder, text):
    assert load_settings("sae_balanced", parse_set(text))


def test_an_override_that_is_wrong_is_said_to_come_from_set(folder):
    with pytest.raises(UserError, match=r"^--set: sae.k = 'x', but"):
        load_settings("sae_quick", parse_set("sae.k=x"))


@pytest.mark.parametrize("layers", ["15,layers.9.mlp,10,9", "9,layers.9.mlp,10,15"])
def test_a_crosscoder_is_the_same_however_its_layers_are_listed(layers):
    """Its run, label and registered model are; so are the columns of its weights."""
    wanted = {"model.layers": layers, "sae.architecture": "crosscoder"}
    settings = load_settings("sae_crosscoder.yaml", wanted)
    assert settings.model.layers == (9, "layers.9.mlp", 10, 15)
    (site,) = sites(settings)
    assert site.label == "layer9-9_mlp-10-15"
    assert site.reads == ("layers.9", "layers.9.mlp", "layers.10", "layers.15")
    assert load_settings("sae_topk.yaml", {"model.layers": "15,10"}).model.layers == (15, 10)
