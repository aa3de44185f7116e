"""What several tests need: a tiny language model made on the spot, a text, and caches."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a test file a process: more threads would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = [f"word{i}" for i in range(200)]
SPECIAL = ["<|endoftext|>", "<unk>"]


@pytest.fixture(scope="session", autouse=True)
def own_working_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A new store's artifacts land in the folder that one works in: not in the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes to the user's cache: each has one of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAE_MLFLOW_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nor to the user's checkpoints, nor to what their store hasn't been told."""
    folder = tmp_path / "state"
    monkeypatch.setenv("SAE_MLFLOW_STATE", str(folder))
    return folder


@pytest.fixture
def user_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own cache, where the embedded model and text stay between two runs."""
    folder = Path(platformdirs.user_cache_dir("sae-mlflow", appauthor=False))
    monkeypatch.setenv("SAE_MLFLOW_CACHE", str(folder))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that threads only wait for one another, and for busy machines."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_threads() -> Iterator[Callable]:
    """Runs something with a number of threads: `in_threads(2, function)`."""
    import torch

    before = torch.get_num_threads()

    def run(n: int, function: Callable) -> object:
        torch.set_num_threads(n)
        return function()

    yield run
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 4 blocks, d_model 32, and a tokenizer of whole words.

    Token 0 is `<|endoftext|>`, 1 is `<unk>`, and `word7` is token 9.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def word_tokenizer(bos: bool = False):
    """A tokenizer whose tokens are words; with `bos` it begins every text with `<s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL, "<s>"] if bos else SPECIAL
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<|endoftext|>",
        bos_token="<s>" if bos else None,
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .txt file of 400 paragraphs, 5 to 40 words each."""
    rng = random.Random(0)
    paragraphs = [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) for _ in range(400)]
    file = tmp_path_factory.mktemp("text") / "tiny.txt"
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return file


@pytest.fixture
def tiny_settings(tiny_model: Path, text_file: Path) -> Callable[..., "object"]:
    """`tiny_settings("model.layers=1,2", ...)`: settings of a training on the tiny model."""
    from sae_mlflow.config import Settings, parse_set

    def make(*overrides: str) -> Settings:
        data: dict = {
            "model": {"name": str(tiny_model), "layers": [1, 2], "device": "cpu"},
            "text": {"source": str(text_file), "tokens": 4096, "context": 32},
            "sae": {"k": 4},
            "train": {"batch_tokens": 128, "epochs": 2},
        }
        for key, value in parse_set(" ".join(overrides)).items():
            section, name = key.split(".")
            data.setdefault(section, {})[name] = value
        return Settings.model_validate(data)

    return make
