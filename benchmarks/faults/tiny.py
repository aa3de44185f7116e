"""A language model, a text and settings so small that a training takes a second."""

import random
from pathlib import Path
from typing import Any

WORDS = [f"word{i}" for i in range(200)]
SPECIAL = ["<|endoftext|>", "<unk>"]


def make_model(folder: Path) -> Path:
    """A random Llama of 4 blocks, d_model 32, and a tokenizer of whole words.

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


def make_text(file: Path) -> Path:
    """400 paragraphs, 5 to 40 words each."""
    rng = random.Random(0)
    paragraphs = [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) for _ in range(400)]
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return file


def tiny_data(model: Path, text: Path) -> dict[str, Any]:
    """Settings of a training on them, as a config file has them."""
    return {
        "model": {"name": str(model), "layers": [1, 2], "device": "cpu"},
        "text": {"source": str(text), "tokens": 4096, "context": 32},
        "sae": {"k": 4},
        "train": {"batch_tokens": 128, "epochs": 2},
    }
