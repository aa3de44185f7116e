import math
from pathlib import Path

import torch

from sae_mlflow.config import ModelSettings, TextSettings
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
from sae_mlflow.text.corpus import token_windows


def test_the_embedded_model_has_read_english(user_cache: Path) -> None:
    """Cross-entropy on the embedded text under 2.96 nats a token, where chance is 10.80.

    Of ordinary tokens, in windows of 1,024 (in shorter ones more documents begin in their middle):
    2.89, with a standard error of 0.03 over these 7 windows.
    """
    model = ModelSettings(device="cpu")
    text = TextSettings(tokens=8 * 1024, context=1024)
    windows = token_windows(text, load_tokenizer(model))
    lm = load_language_model(model)
    losses = []
    for window, kept in zip(windows.train, windows.kept(windows.train), strict=True):
        ids = torch.from_numpy(window).long()
        with torch.inference_mode():
            logits = lm.model(ids[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        losses.append(loss[torch.from_numpy(kept[1:])])
    assert torch.cat(losses).mean().item() < 2.96 < math.log(49_152)
