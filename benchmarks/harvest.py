"""How much collecting activations costs beside the LM, and whether its memory stays flat.

    python benchmarks/harvest.py [--layers 2,4,5] [--batches 20] [--memory-tokens 50000 200000]

Prints JSON. `throughput`: tokens/s of `fill_activations` (LM, hooks, exclusions, disk) over those
of the bare forward through the same blocks of the same model, on the same batches, turn by turn in
one process. `memory`: peak resident memory of a fresh process that fills a cache and reads one
epoch of it, at each number of tokens. The memory part uses a random model of two thin blocks with
SmolLM2's d_model (576; 4.6 kB a token for two hookpoints): SmolLM2 itself would need minutes for
200k tokens, and its 540 MB of weights would hide what grows. About a minute in all on 2 cores.
"""

import argparse
import copy
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.layer import open_activations
from sae_mlflow.activations.plan import ActivationPlan, plan_activations
from sae_mlflow.config import EMBEDDED_MODEL, Settings
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
from sae_mlflow.text.corpus import token_windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="for throughput")
    parser.add_argument("--layers", default="2,4,5", help="for throughput")
    parser.add_argument("--batches", type=int, default=20, help="of 8 windows of 128 tokens")
    parser.add_argument("--memory-tokens", type=int, nargs="*", default=[50_000, 200_000])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(peak_memory(Path(args.child), *args.memory_tokens)))
        return
    result = {"throughput": throughput(args.model, args.layers, args.batches)}
    if args.memory_tokens:
        result["memory"] = memory(args.memory_tokens)
    print(json.dumps(result, indent=1))


class _AsWritten(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def throughput(model: str, layers: str, n_batches: int) -> dict[str, object]:
    settings = Settings.model_validate(
        {
            "model": {"name": model, "layers": layers},
            "text": {"tokens": n_batches * 8 * 128},
            "activations": {"batch_windows": 8},
        }
    )
    windows = token_windows(settings.text, load_tokenizer(settings.model))
    lm = load_language_model(settings.model)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAE_MLFLOW_CACHE"] = folder
        plan = plan_activations(settings, windows)
        harvest, bare = _in_turns(plan, lm, max(settings.model.layers))
    tokens = 8 * 128
    return {
        "model": model,
        "layers": layers,
        "harvest_tokens_per_second": round(tokens / statistics.median(harvest)),
        "bare_tokens_per_second": round(tokens / statistics.median(bare)),
        "ratio": round(sum(bare) / sum(harvest), 3),
        "ratio_of_medians": round(statistics.median(bare) / statistics.median(harvest), 3),
        "wanted": ">= 0.9",
    }


def _in_turns(
    plan: ActivationPlan, lm: LanguageModel, deepest: int
) -> tuple[list[float], list[float]]:
    """Seconds of each batch, the first of each left out."""
    ids = torch.from_numpy(plan.windows.train[:8]).long()
    bare_model = _first_blocks(lm, deepest + 1)
    harvest, bare = [], []
    fill = fill_activations(plan, lm)
    while True:
        start = time.perf_counter()
        if next(fill, None) is None:
            return harvest[1:-1], bare[1:-1]  # the last batch may be a short one
        harvest.append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.inference_mode():
            bare_model(input_ids=ids, use_cache=False)
        bare.append(time.perf_counter() - start)


def _first_blocks(lm: LanguageModel, n: int) -> torch.nn.Module:
    """The same weights in a model that has no more than `n` blocks (Llama's layout)."""
    bare = copy.copy(lm.model.base_model)
    bare._modules = dict(bare._modules)
    bare.layers = bare.layers[:n]
    return bare


def memory(token_counts: list[int]) -> dict[str, object]:
    peaks = {}
    for tokens in token_counts:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--child", folder, "--memory-tokens", str(tokens)]
            env = {**os.environ, "SAE_MLFLOW_CACHE": f"{folder}/cache"}
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        peaks[tokens] = json.loads(done.stdout)
    first, last = (peaks[tokens]["peak_rss_mb"] for tokens in (token_counts[0], token_counts[-1]))
    return {"at_tokens": peaks, "growth": round(last / first - 1, 3), "wanted": "<= 0.1"}


def peak_memory(folder: Path, tokens: int) -> dict[str, float]:
    """Fill a cache of `tokens` tokens, read an epoch and the held-out set, and say what it took."""
    settings = Settings.model_validate(
        {
            "model": {"name": str(_thin_model(folder)), "layers": [0, 1], "device": "cpu"},
            "text": {"source": str(_random_text(folder, tokens)), "tokens": tokens},
        }
    )
    windows = token_windows(settings.text, load_tokenizer(settings.model))
    plan = plan_activations(settings, windows)
    for _ in fill_activations(plan, load_language_model(settings.model)):
        pass
    filled = _peak_mb()
    for acts in open_activations(plan):
        for batch in acts.batches(1024, torch.Generator().manual_seed(0)):
            batch.x.sum()
        for batch in acts.held_out_batches(1024):
            batch.x.sum()
    cache_mb = sum(store.acts_file.stat().st_size for store in plan.stores) / 1e6
    return {"cache_mb": round(cache_mb), "after_fill_mb": filled, "peak_rss_mb": _peak_mb()}


def _peak_mb() -> float:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / 1024 / (1024 if sys.platform == "darwin" else 1), 1)


def _thin_model(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocab = {"<|endoftext|>": 0} | {f"w{i}": i + 1 for i in range(999)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(
        folder / "model"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=576,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return folder / "model"


def _random_text(folder: Path, tokens: int) -> Path:
    rng = random.Random(0)
    file = folder / "text.txt"
    with file.open("w", encoding="utf-8") as text:
        for _ in range(tokens // 90):
            print(" ".join(f"w{rng.randrange(999)}" for _ in range(100)), end="\n\n", file=text)
    return file


if __name__ == "__main__":
    main()
