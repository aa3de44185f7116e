"""`latents.html`: the tokens in context that fire each latent most, as one self-contained page.

Nothing on it is loaded from elsewhere and nothing runs: its policy forbids scripts, and every text
that comes from a corpus, a vocabulary or a model's name is escaped.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

_SHADES = 8
_LONGEST_TOKEN = 32  # characters shown of one; some vocabularies have tokens of 128 spaces

_HEADINGS = {
    "named": "Named",
    "most frequent": "Most frequent",
    "random": "Random, of the others that fired",
}
_FACTS = {
    "ce_loss_original": ("CE loss of the LM as it is", "{:.4f} nats a token"),
    "ce_loss_spliced": ("CE loss with the SAE standing in", "{:.4f} nats a token"),
    "ce_loss_zero_ablated": ("CE loss with zeros there", "{:.4f} nats a token"),
    "ce_loss_recovered": ("Share of zero ablation's loss that is won back", "{:.2%}"),
    "kl_divergence": ("KL divergence (original || spliced)", "{:.4f} nats a token"),
    "latents_over_1_percent": ("Latents that fire on over 1% of tokens", "{:.1%}"),
    "latents_over_10_percent": ("Latents that fire on over 10% of tokens", "{:.1%}"),
    "latents_dead_fraction": ("Latents that fired on none of the tokens", "{:.1%}"),
    "decoder_max_cosine": ("Cosine of a decoder row with the nearest other, mean", "{:.3f}"),
    "encoder_decoder_cosine": ("Cosine of a latent's encoder and decoder, mean", "{:.3f}"),
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 62rem;
  padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 } h2 { margin: 2.5rem 0 0; font-size: 1.2rem }
h3 { font-size: 1.05rem; margin: 0 }
p { margin: .3rem 0 } .faint, th { color: #6b6b6b } img { max-width: 100%; margin: 1rem 0 }
table { border-collapse: collapse; margin: 1rem 0 } th { text-align: left; font-weight: 400 }
td, th { padding: .1rem 1.2rem .1rem 0 } td { font-variant-numeric: tabular-nums }
section { border-top: 1px solid #ddd; margin-top: 1.2rem; padding-top: .8rem }
code { background: #f1f1f1; border-radius: 3px; padding: 0 .3em; margin-right: .3em;
  white-space: pre; display: inline-block }
.e { display: grid; grid-template-columns: 4.5rem 1fr; font-size: .92rem; margin: .15rem 0 }
.e > i { font-style: normal; color: #6b6b6b; font-variant-numeric: tabular-nums }
.e > div { white-space: pre-wrap; unicode-bidi: isolate }
b { font-weight: inherit; border-radius: 2px }
nav { font-variant-numeric: tabular-nums; margin-top: .4rem } nav a { margin-right: .5em }
b.p { font-weight: 700; border-bottom: 2px solid #222 }
"""


@dataclass(frozen=True)
class ShownExample:
    """A stretch of text and how much each of its tokens fires a latent."""

    tokens: Sequence[str]
    activations: Sequence[float]
    """0 where it doesn't fire."""
    peak: int
    """Index of the token that fires it most."""


@dataclass(frozen=True)
class Card:
    """What is shown of one latent."""

    latent: int
    reason: str
    """Why it was chosen: `named`, `most frequent` or `random`."""
    density: float
    """Share of tokens that it fires on."""
    nearest: Sequence[str]
    """The vocabulary items that its decoder row points to; none where it isn't in that space."""
    examples: Sequence[ShownExample]


def latent_page(
    title: str,
    notes: Sequence[str],
    metrics: Mapping[str, float],
    density_png: bytes,
    cards: Sequence[Card],
) -> str:
    """The page; cards in groups by their reason.

    Args:
        notes: lines under the title.
        metrics: `evaluate.Evaluation.metrics`.
    """
    return "".join(_page(title, notes, metrics, density_png, cards))


def _page(
    title: str,
    notes: Sequence[str],
    metrics: Mapping[str, float],
    density_png: bytes,
    cards: Sequence[Card],
) -> Iterator[str]:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield f"<title>{_text(title)}: latents</title>\n<style>{_STYLE}{_shades()}</style></head>\n"
    yield f"<body><h1>{_text(title)}</h1>\n"
    yield from (f'<p class="faint">{_text(note)}</p>\n' for note in notes)
    yield f"<table>{''.join(_facts(metrics))}</table>\n"
    png = base64.b64encode(density_png).decode()
    yield f'<img alt="Histogram of log10 density" src="data:image/png;base64,{png}">\n'
    yield _how_to_read()
    for reason, group in groupby(cards, key=lambda card: card.reason):
        shown = list(group)
        yield f"<h2>{_text(_HEADINGS.get(reason, reason))}</h2>\n"
        yield _contents(shown)
        for card in shown:
            yield from _card(card)
    yield "</body></html>\n"


def _facts(metrics: Mapping[str, float]) -> Iterator[str]:
    for key, (words, form) in _FACTS.items():
        if key in metrics:
            said = form.format(metrics[key])
            if key == "ce_loss_recovered" and _zeros_cost_nothing(metrics):
                said = "none to win back: zeros cost the LM nothing here"
            yield f"<tr><th>{escape(words)}</th><td>{said}</td></tr>\n"


def _zeros_cost_nothing(metrics: Mapping[str, float]) -> bool:
    original, zeros = (metrics.get(f"ce_loss_{what}") for what in ("original", "zero_ablated"))
    return original is not None and zeros is not None and zeros <= original


def _contents(cards: Sequence[Card]) -> str:
    links = " ".join(f'<a href="#latent{card.latent}">{card.latent}</a>' for card in cards)
    return f"<nav>{links}</nav>\n"


def _how_to_read() -> str:
    scale = "".join(f'<b class="s{n}"> {n / _SHADES:.0%} </b>' for n in range(1, _SHADES + 1))
    return (
        "<p>Each line is a stretch of held-out text; the number is the latent's activation on its "
        "strongest token, which is underlined. Tokens are shaded by activation, in shares of the "
        f"latent's largest here: {scale}. Point at a token to see its activation. "
        "Special tokens, first positions and giant norms fire nothing: they pass the SAE by.</p>\n"
    )


def _card(card: Card) -> Iterator[str]:
    rate = f"fires on {card.density:.3%} of tokens"
    if card.density:
        rate += f" (log10 density {math.log10(card.density):.2f})"
    yield f'<section id="latent{card.latent}"><h3>Latent {card.latent}</h3>\n<p>{rate}</p>\n'
    if card.nearest:
        items = "".join(f"<code>{_token(item)}</code>" for item in card.nearest)
        yield f"<p>Decoder's nearest vocabulary items: {items}</p>\n"
    finite = (a for e in card.examples for a in e.activations if math.isfinite(a))
    largest = max(finite, default=0.0)
    for example in card.examples:
        text = "".join(_shaded(example, largest))
        strength = _number(example.activations[example.peak])
        yield f'<div class="e"><i>{strength}</i><div>{text}</div></div>\n'
    if not card.examples:
        yield '<p class="faint">No token in the text fired it.</p>\n'
    yield "</section>\n"


def _shaded(example: ShownExample, largest: float) -> Iterator[str]:
    for i, (token, strength) in enumerate(zip(example.tokens, example.activations, strict=True)):
        if strength > 0:
            is_largest = strength >= largest  # as an infinite one is
            shade = _SHADES if is_largest else max(1, math.ceil(_SHADES * strength / largest))
            classes = f'"s{shade} p"' if i == example.peak else f"s{shade}"
            yield f"<b class={classes} title={_number(strength)}>{_token(token)}</b>"
        else:
            yield _token(token)


def _shades() -> str:
    """Background of each shade: orange, told apart by lightness too; black text reads on all."""
    return "".join(
        f".s{n} {{ background: rgba(222, 143, 5, {0.12 + 0.78 * n / _SHADES:.2f}) }}\n"
        for n in range(1, _SHADES + 1)
    )


def _number(value: float) -> str:
    """Three digits, zeros at the end too: `3.00` stands under `4.26`."""
    if abs(value) >= 999.5 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


def _token(text: str) -> str:
    if len(text) > _LONGEST_TOKEN:
        text = text[:_LONGEST_TOKEN] + "…"
    return _text(text.replace("\n", "↵").replace("\t", "⇥"))


def _text(text: str) -> str:
    """Escaped, and without what can't be seen: control characters, marks that turn text around."""
    return escape("".join(map(_visible, text)))


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
