import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from faults.tiny import word_tokenizer
from safetensors.torch import load_file, save_file

from sae_mlflow.config import ModelSettings, Settings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.files import weights_hash
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.loading import (
    ModelShape,
    check_model,
    hookpoint_widths,
    load_language_model,
    load_tokenizer,
    resolve_device,
)

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.arange(2, 34).reshape(2, 16)


def on_cpu(name: str | Path, *layers: int | str) -> ModelSettings:
    return ModelSettings(name=str(name), layers=layers or (0,), device="cpu")


def check(model: ModelSettings, architecture: str = "topk") -> ModelShape:
    return check_model(
        Settings.model_validate({"model": model, "sae": {"architecture": architecture}})
    )


@pytest.fixture(scope="module")
def lm(tiny_model: Path) -> LanguageModel:
    return load_language_model(on_cpu(tiny_model))


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def tiny(architecture: str) -> torch.nn.Module:
    """A random model of three blocks, in an architecture that names its parts in its own way."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 50}
    match architecture:
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50))
        case "gpt_neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**size, intermediate_size=32))
        case _:
            return OPTForCausalLM(OPTConfig(**size, ffn_dim=32, word_embed_proj_dim=16))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt"])
def test_a_block_is_read_whatever_the_architecture_calls_its_blocks(architecture: str) -> None:
    """`hidden_states[n + 1]` of transformers is block n's output, but for the last one's norm."""
    lm = LanguageModel(tiny(architecture), architecture)
    with torch.no_grad():
        hidden = lm.model(IDS, output_hidden_states=True).hidden_states
    acts = lm.activations(IDS, ["layers.0", "layers.1"])
    for block in (0, 1):
        assert torch.equal(acts[f"layers.{block}"], hidden[block + 1].reshape(32, 16))


def test_the_last_block_is_read_before_the_final_norm(lm: LanguageModel) -> None:
    with torch.no_grad():
        normed = lm.model(IDS, output_hidden_states=True).hidden_states[-1].reshape(32, 32)
        acts = lm.activations(IDS, ["layers.3"])["layers.3"]
        assert not torch.allclose(acts, normed)
        assert torch.equal(lm.model.model.norm(acts), normed)


def test_a_block_is_what_came_in_plus_attention_plus_mlp(lm: LanguageModel) -> None:
    names = ["layers.0", "layers.1.self_attn", "layers.1.mlp", "layers.1"]
    before, attention, mlp, after = (lm.activations(IDS, names)[name] for name in names)
    torch.testing.assert_close(before + attention + mlp, after)


def test_hookpoints_read_together_are_those_read_one_by_one(lm: LanguageModel) -> None:
    names = ["layers.2.mlp", "layers.0", "embed_tokens", "layers.2"]
    together = lm.activations(IDS, names)
    assert set(together) == set(names)
    for name in names:
        assert torch.equal(together[name], lm.activations(IDS, [name])[name])


def inputs_by_hooks_of_our_own(model: torch.nn.Module, *names: str) -> dict[str, torch.Tensor]:
    """What modules really receive in a whole forward pass, by position or as `hidden_states`."""
    received: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable:
        def keep(_: object, args: tuple, kwargs: dict) -> None:
            received[name] = (args[0] if args else kwargs["hidden_states"]).clone()

        return keep

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True)
        for name in names
    ]
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    return {name: acts.flatten(0, 1) for name, acts in received.items()}


def test_an_input_is_what_the_module_receives(lm: LanguageModel) -> None:
    """Llama gives a block and an MLP their input by position, attention `hidden_states=`."""
    names = ["layers.0", "layers.2.self_attn", "layers.2.mlp", "layers.2.mlp.down_proj"]
    received = inputs_by_hooks_of_our_own(lm.model.model, *names)
    acts = lm.activations(IDS, [f"{name}:input" for name in names])
    for name in names:
        assert torch.equal(acts[f"{name}:input"], received[name])
    assert acts["layers.2.mlp.down_proj:input"].shape == (32, 48)


@pytest.mark.parametrize(
    ("architecture", "attention", "path"),
    [
        ("gpt2", "attn", "h.1"),
        ("gpt_neox", "attention", "layers.1"),
        ("opt", "self_attn", "decoder.layers.1"),
    ],
)
def test_an_input_is_read_whatever_the_architecture_calls_its_modules(
    architecture: str, attention: str, path: str
) -> None:
    lm = LanguageModel(tiny(architecture), architecture)
    theirs = [path, f"{path}.{attention}"]
    received = inputs_by_hooks_of_our_own(lm.model.base_model, *theirs)
    ours = ["layers.1:input", f"layers.1.{attention}:input"]
    acts = lm.activations(IDS, ours)
    for our_name, their_name in zip(ours, theirs, strict=True):
        assert torch.equal(acts[our_name], received[their_name])


def test_a_blocks_input_is_the_output_of_the_block_before(lm: LanguageModel) -> None:
    acts = lm.activations(IDS, ["layers.0", "layers.1:input", "embed_tokens", "layers.0:input"])
    assert torch.equal(acts["layers.1:input"], acts["layers.0"])
    assert torch.equal(acts["layers.0:input"], acts["embed_tokens"])


def test_a_module_is_read_at_both_ends_in_one_pass(lm: LanguageModel) -> None:
    """The MLP run by hand on what it took in is what it put out."""
    acts = lm.activations(IDS, ["layers.3.mlp", "layers.3.mlp:input"])
    with torch.no_grad():
        output = lm.model.model.layers[3].mlp(acts["layers.3.mlp:input"])
    torch.testing.assert_close(acts["layers.3.mlp"], output)


class Masked(torch.nn.Module):
    """Calls its part with the mask before the activations."""

    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, hidden_states: torch.Tensor, **kwargs: object) -> object:
        return self.part(mask=torch.zeros(3), hidden_states=hidden_states, **kwargs)


class Part(torch.nn.Module):
    def forward(self, mask: torch.Tensor, hidden_states: torch.Tensor, **_: object) -> object:
        return hidden_states * 2


def test_among_keywords_the_input_is_hidden_states(tiny_model: Path) -> None:
    lm = load_language_model(on_cpu(tiny_model))
    lm.model.model.layers[1] = Masked(Part())
    acts = lm.activations(IDS, ["layers.0", "layers.1.part:input"])
    assert torch.equal(acts["layers.1.part:input"], acts["layers.0"])


def test_a_module_whose_input_alone_is_wanted_does_not_run(lm: LanguageModel) -> None:
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in lm.model.model.named_modules()
    ]
    lm.activations(IDS, ["layers.1.mlp:input", "layers.0.mlp:input"])
    for handle in handles:
        handle.remove()
    assert ran[-1] == "layers.1.post_attention_layernorm"
    assert not any(module._forward_pre_hooks for module in lm.model.modules())


def test_nothing_past_the_deepest_hookpoint_is_computed_and_the_model_stays_whole(
    tiny_model: Path,
) -> None:
    lm = load_language_model(on_cpu(tiny_model))
    with torch.no_grad():
        before = lm.model(IDS).logits
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in lm.model.named_modules()
    ]
    lm.activations(IDS, ["layers.1", "layers.0"])
    assert "model.layers.0.mlp" in ran and "model.layers.1.mlp" in ran
    assert not [name for name in ran if ".2" in name or ".3" in name or "head" in name]
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in lm.model.modules())
    with torch.no_grad():
        assert torch.equal(lm.model(IDS).logits, before)


def test_activations_are_not_changed_by_what_the_model_does_next(lm: LanguageModel) -> None:
    """A module behind the hookpoint that works in place changes its own copy."""
    handle = lm.model.model.layers[1].register_forward_pre_hook(lambda _, args: args[0].zero_())
    acts = lm.activations(IDS, ["layers.0", "layers.1"])["layers.0"]
    handle.remove()
    assert acts.abs().sum() > 0


def test_the_shape_comes_from_the_config_alone(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    assert check(on_cpu(copied, 3)) == ModelShape(4, 32, 202, 64)


def test_the_embedded_model_is_checked_without_being_fetched(own_cache: Path) -> None:
    model = ModelSettings(layers=(29, "layers.3.mlp.gate_proj"))
    assert check(model).d_model == 576
    assert hookpoint_widths(model, ["layers.3.mlp.gate_proj"]) == {"layers.3.mlp.gate_proj": 1536}
    with pytest.raises(UserError, match=r"30, but smollm2-135m has layers 0\.\.29"):
        check(ModelSettings(layers=(30,)))
    assert not own_cache.exists()


def test_the_width_of_a_module_is_known_without_the_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    widths = {"layers.1": 32, "layers.1.mlp.gate_proj": 48, "layers.0.self_attn.v_proj": 16}
    assert hookpoint_widths(on_cpu(copied), widths) == widths


def test_the_width_of_an_input_is_known_without_the_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    widths = {
        "layers.1.mlp:input": 32,
        "layers.1.mlp": 32,
        "layers.1.mlp.down_proj:input": 48,
        "layers.1.mlp.down_proj": 32,
        "layers.0.self_attn:input": 32,
        "layers.0:input": 32,
    }
    assert hookpoint_widths(on_cpu(copied), widths) == widths


def test_a_blocks_two_ends_are_as_wide_as_the_config_says_without_transformers(
    own_cache: Path,
) -> None:
    code = (
        "import sys; from sae_mlflow.config import ModelSettings;"
        "from sae_mlflow.lm.loading import hookpoint_widths;"
        "print(hookpoint_widths(ModelSettings(), ['layers.3:input', 'layers.3']),"
        "'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'layers.3:input': 576, 'layers.3': 576} False\n"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (4, r"4, but .* has layers 0\.\.3\. Remove it, or choose a deeper model"),
        ("layers.9.mlp", r"layers\.9\.mlp, but .* has layers 0\.\.3"),
        ("layers.1.mpl", r"no module 'layers\.1\.mpl'. Did you mean layers\.1\.mlp\?"),
        ("blocks.1", r"no module 'blocks\.1'"),
        ("all", r"no module 'all'.*\(0 to 3\), a range of them \(0-3 is all\), or a module's path"),
        ("layers", r"doesn't put out one activation a token"),
        ("rotary_emb", r"doesn't put out one activation a token"),
    ],
)
def test_a_layer_that_the_model_has_not_is_refused(
    tiny_model: Path, layer: int | str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(on_cpu(tiny_model, layer))


@pytest.mark.parametrize(
    ("layer", "architecture", "message"),
    [
        (
            "embed_tokens",
            "transcoder",
            r"embed_tokens of .* doesn't take in one activation a token",
        ),
        ("rotary_emb", "skip_transcoder", r"doesn't put out one activation a token.*layers\.0\."),
        (
            "layers.1.mpl",
            "transcoder",
            r"no module 'layers\.1\.mpl'. Did you mean layers\.1\.mlp\?",
        ),
        (9, "transcoder", r"9, but .* has layers 0\.\.3"),
        (1, "crosscoder", r"a crosscoder spans two layers or more, but there is layers\.1 alone"),
        ("layers.1.mlp:input", "topk", r"is not a module. Name the module alone, 'layers\.1\.mlp'"),
    ],
)
def test_a_layer_that_the_architecture_does_not_work_on_is_refused(
    tiny_model: Path, layer: int | str, architecture: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(on_cpu(tiny_model, layer), architecture)


def test_a_layer_is_checked_where_the_architecture_reads_it(tiny_model: Path) -> None:
    """`embed_tokens` takes in no activations, but an autoencoder reads what it puts out."""
    assert check(on_cpu(tiny_model, "embed_tokens")).d_model == 32
    assert check(on_cpu(tiny_model, 0, "layers.1.mlp"), "transcoder").d_model == 32


HOSTILE = [
    "../x",
    "/no/such/folder",
    "two words",
    "a\nb",
    "a/b/c",
    "..",
    "\x00",
    "x" * 5000,
    "~",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_neither_a_folder_nor_a_hub_name_asks_no_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*args: object) -> None:
        raise AssertionError(f"asked the network for {args}")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    with pytest.raises(UserError, match=r"model\.name = ") as caught:
        check(on_cpu(name))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_folder_that_holds_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without a config\.json"):
        check(on_cpu(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="is a t5 model, not a causal"):
        check(on_cpu(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"can't use its config\.json"):
        check(on_cpu(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(copied: Path) -> None:
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer that loads.*save_pretrained"):
        load_tokenizer(on_cpu(copied))


def test_weights_that_are_missing_or_cut_are_not_made_up(copied: Path) -> None:
    file = copied / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for model\.layers\.2\.mlp\.up_proj\.weight"):
        load_language_model(on_cpu(copied))
    os.truncate(file, 5000)
    with pytest.raises(UserError, match="can't be loaded"):
        load_language_model(on_cpu(copied))
    file.unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        load_language_model(on_cpu(copied))


def test_the_dtype_is_the_one_asked_for(tiny_model: Path) -> None:
    model = on_cpu(tiny_model).model_copy(update={"dtype": "bfloat16"})
    acts = load_language_model(model).activations(IDS, ["layers.0"])["layers.0"]
    assert acts.dtype == torch.bfloat16


def test_loading_says_nothing(
    tiny_model: Path, lm: LanguageModel, capfd: pytest.CaptureFixture[str]
) -> None:
    load_tokenizer(on_cpu(tiny_model))
    load_language_model(on_cpu(tiny_model))
    assert capfd.readouterr() == ("", "")


def test_a_device_that_is_not_there_is_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in {"cpu", "cuda"}
    for name in ("cuda:99", "toaster", "meta"):
        with pytest.raises(UserError, match=rf"model.device = '{name}' is not here.*cpu"):
            resolve_device(name)


def test_an_apple_gpu_is_neither_chosen_nor_taken_since_it_has_no_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(UserError, match="model.device = 'mps' can't be used: .*float64.*cpu"):
        resolve_device("mps")


def test_the_weights_hash_is_of_the_weights_and_not_of_where_they_lie(
    tiny_model: Path, copied: Path
) -> None:
    assert weights_hash(on_cpu(tiny_model)) == weights_hash(on_cpu(copied))
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-6
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert weights_hash(on_cpu(tiny_model)) != weights_hash(on_cpu(copied))


def test_a_weight_file_that_is_as_it_was_is_not_hashed_again(copied: Path, own_cache: Path) -> None:
    """What 13 GB would take a minute for: shown by what is remembered, in which nobody looks."""
    weights = str((copied / "model.safetensors").resolve())
    before, memo_file = weights_hash(on_cpu(copied)), own_cache / "weights_hashes.json"
    assert not memo_file.exists()  # the files were written a moment ago
    time.sleep(2.1)
    assert weights_hash(on_cpu(copied)) == before
    memo = json.loads(memo_file.read_text())
    assert {weights, str((copied / "config.json").resolve())} == {key.split()[0] for key in memo}
    (key,) = (key for key in memo if key.startswith(weights))
    memo_file.write_text(json.dumps(memo | {key: "0" * 64}))
    assert weights_hash(on_cpu(copied)) != before
    (copied / "model.safetensors").touch()
    assert weights_hash(on_cpu(copied)) == before


class FakeHub(BaseHTTPRequestHandler):
    """The Hub's answers for a gated and a missing model, as the service gives them."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/maker/gated"):
            self.answer(200, {"id": "maker/gated", "sha": "c0ffee" + "0" * 34})
        elif self.path.startswith("/maker/gated/"):
            self.answer(403, {}, "GatedRepo")
        else:
            self.answer(404, {}, "RepoNotFound")

    do_HEAD = do_GET

    def answer(self, status: int, body: dict, code: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


CHECK = """
import sys, time
from sae_mlflow.config import ModelSettings, Settings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.files import locate
for name in sys.argv[1:]:
    start = time.monotonic()
    try:
        locate(ModelSettings(name=name))
    except UserError as error:
        print(time.monotonic() - start < 5, error)
"""


def checked_on(endpoint: str, tmp_path: Path, *names: str) -> list[str]:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        env.pop(proxy, None), env.pop(proxy.upper(), None)
    command = [sys.executable, "-c", CHECK, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_gated_and_a_missing_model_are_told_apart(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{hub.server_port}"
        gated, missing = checked_on(endpoint, tmp_path, "maker/gated", "maker/missing")
        hub.shutdown()
    assert gated.startswith("True maker/gated is gated. Accept its licence at")
    assert "`hf auth login`" in gated
    assert missing.startswith("True model.name = 'maker/missing' is neither a folder here nor a")


def test_a_hub_that_cannot_be_reached_is_said_at_once(tmp_path: Path) -> None:
    (said,) = checked_on("http://127.0.0.1:9", tmp_path, "maker/model")
    assert said.startswith("True model.name = 'maker/model' is no folder here")
    assert "can't be reached" in said and "smollm2-135m (embedded)" in said


def test_a_model_and_a_tokenizer_saved_by_transformers_load_from_their_folder(
    tiny_model: Path,
) -> None:
    assert load_tokenizer(on_cpu(tiny_model))("word7 word0").input_ids == [9, 2]
    assert word_tokenizer()("word7 word0").input_ids == [9, 2]
