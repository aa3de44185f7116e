"""`latents.html`: which latents it shows, their examples, and that no text can harm it."""

import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from faults.tiny import word_tokenizer
from spliced_models import ANY_NORM, D_MODEL, random_sae, tiny_lm, windows

from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.cards import TokenText, latent_cards
from sae_mlflow.evaluation.evaluate import StandIn, evaluate
from sae_mlflow.evaluation.firings import Chosen, Firings, choose_latents
from sae_mlflow.evaluation.logit_lens import nearest_tokens
from sae_mlflow.evaluation.page import Card, ShownExample, latent_page
from sae_mlflow.evaluation.splice import Splicer
from sae_mlflow.lm.sites import Site
from sae_mlflow.sae import Sizes
from sae_mlflow.sae.crosscoder import CrosscoderSAE

pytestmark = pytest.mark.usefixtures("one_thread")
HOSTILE = '</div><script>alert("1")</script>\N{RIGHT-TO-LEFT OVERRIDE}&amp;\x00'


class Reader(HTMLParser):
    """Every tag and all the text of a page, as a browser would take it."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(cards, title="model · layer1", notes=("a note",), metrics=None):
    return latent_page(title, notes, metrics or {}, b"png", cards)


def card(tokens=("a", " b"), activations=(0.0, 2.0), nearest=(" x",), latent=7, density=0.01):
    example = ShownExample(tokens, activations, peak=int(np.argmax(activations)))
    return Card(latent, "random", density, nearest, [example])


def test_hostile_text_is_only_text_wherever_it_comes_from():
    shown = Reader(
        page([card((HOSTILE, HOSTILE), (0.0, 2.0), (HOSTILE,))], title=HOSTILE, notes=[HOSTILE])
    )
    assert "script" not in shown.tags and shown.open == []
    assert shown.text.count('<script>alert("1")</script') == 4 + 2  # the title stands twice
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in shown.text and "\x00" not in shown.text
    assert not [name for name, _ in shown.attributes if name.startswith("on")]


def test_the_page_loads_nothing_and_forbids_scripts():
    shown = Reader(page([card()]))
    addresses = [value for name, value in shown.attributes if name in {"src", "href"}]
    assert addresses == ["data:image/png;base64,cG5n", "#latent7"]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in (
        shown.attributes
    )


def test_a_card_says_rate_density_vocabulary_and_shades_what_fires():
    text = page([card(("a", " b", " c"), (0.0, 4.0, 1.0), density=0.01)])
    assert "fires on 1.000% of tokens (log10 density -2.00)" in text
    assert "<code> x</code>" in text
    assert 'a<b class="s8 p" title=4.00> b</b><b class=s2 title=1.00> c</b>' in text


def test_an_infinite_activation_has_the_darkest_shade_and_the_others_their_own():
    text = page([card(("a", "b", "c"), (math.inf, 4.0, 1.0))])
    first, second = '<b class="s8 p" title=inf>a</b>', "<b class=s8 title=4.00>b</b>"
    assert f"{first}{second}<b class=s2 title=1.00>c</b>" in text
    assert '<b class="s8 p" title=inf>a</b>' in page([card(("a",), (math.inf,))])


def test_each_group_begins_with_links_to_its_latents():
    shown = Reader(page([card(latent=n) for n in (7, 30)]))
    ids = [value for name, value in shown.attributes if name == "id"]
    links = [value for name, value in shown.attributes if name == "href"]
    assert ids == ["latent7", "latent30"] and links == ["#latent7", "#latent30"]


@pytest.mark.parametrize(
    ("zeros", "words"), [(5.0, "won back75.00%"), (4.0, "none to win back"), (3.9, "none to win")]
)
def test_what_zeros_do_not_cost_is_not_won_back(zeros, words):
    losses = {"ce_loss_original": 4.0, "ce_loss_zero_ablated": zeros, "ce_loss_recovered": 0.75}
    assert words in Reader(page([], metrics=losses)).text


def test_a_latent_that_never_fired_is_said_to():
    shown = Reader(page([Card(3, "named", 0.0, [], [])]))
    assert "Latent 3fires on 0.000% of tokensNo token in the text fired it." in (
        shown.text.replace("\n", "")
    )


def test_newlines_are_marks_odd_spaces_are_spaces_and_long_tokens_are_cut():
    shown = Reader(page([card(("\n", "9\N{NO-BREAK SPACE}km", "#" * 128), (0.0, 0.0, 1.0))]))
    assert "↵9 km" + "#" * 32 + "…" in shown.text


def test_two_hundred_latents_stay_under_three_megabytes_even_if_each_fires_everywhere():
    tokens = [' "quoted"'] * 25
    example = ShownExample(tokens, [123.456] * 25, peak=12)
    cards = [Card(i, "random", 1.0, tokens[:10], [example] * 8) for i in range(200)]
    png = b"0" * 60_000
    assert len(latent_page("m", ["n"], {}, png, cards).encode()) < 3_000_000


def test_named_latents_come_first_then_the_most_frequent_then_random_ones_that_fired():
    density = np.array([0.0, 0.5, 0.1, 0.9, 0.2, 0.3, 0.0])
    chosen = choose_latents(density, 4, named=[0, 3])
    assert chosen[:4] == [
        Chosen(0, "named"),
        Chosen(3, "named"),
        Chosen(1, "most frequent"),
        Chosen(5, "most frequent"),
    ]
    assert {c.latent for c in chosen[4:]} == {2, 4}
    assert {c.reason for c in chosen[4:]} == {"random"}
    assert choose_latents(density, 4, named=[0, 3]) == chosen  # the same on every call


def test_a_latent_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"--latent 7: this SAE has latents 0\.\.6\."):
        choose_latents(np.zeros(7), 2, named=[7])


def test_examples_are_the_strongest_windows_each_once_around_its_strongest_token():
    windows = np.arange(15).reshape(3, 5)
    firings = Firings()
    latents = torch.zeros(15, 2)
    latents[[1, 3, 7, 14], 1] = torch.tensor([5.0, 9.0, 7.0, 1.0])
    firings.add(latents[:10], torch.arange(10))
    firings.add(latents[10:], torch.arange(10, 15))
    never, twice = firings.examples(windows, [0, 1], n=2, around=1)
    assert never == []
    assert [e.token_ids for e in twice] == [(2, 3, 4), (6, 7, 8)]
    assert [e.activations for e in twice] == [(0.0, 9.0, 0.0), (0.0, 7.0, 0.0)]
    (whole,) = next(firings.examples(windows, [1], n=1, around=9))
    assert (whole.activations, whole.peak) == ((0.0, 5.0, 0.0, 9.0, 0.0), 3)


def test_past_the_limit_the_first_tokens_are_kept_and_it_is_known(monkeypatch):
    monkeypatch.setattr("sae_mlflow.evaluation.firings._MOST_ENTRIES", 3)
    firings = Firings()
    firings.add(torch.ones(2, 1), torch.arange(2))
    firings.add(torch.ones(2, 1), torch.arange(2, 4))
    assert not firings.complete
    (examples,) = firings.examples(np.arange(4).reshape(4, 1), [0], n=9, around=1)
    assert [e.token_ids for e in examples] == [(0,), (1,)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_logit_lens_is_the_unembedding_of_the_normed_direction(architecture):
    lm = tiny_lm(architecture)
    directions = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0))
    found = nearest_tokens(Splicer(lm), 0.01 * directions, 3)  # their length doesn't count
    model = lm.model
    norm = model.model.norm if architecture == "llama" else model.transformer.ln_f
    with torch.no_grad():
        centred = directions - directions.mean(dim=1, keepdim=True)
        normed = directions if architecture == "llama" else centred
        logits = (normed * norm.weight) @ model.lm_head.weight.t()
    assert found == logits.topk(3, dim=1).indices.tolist()


def test_a_direction_of_another_width_has_no_vocabulary_items():
    assert nearest_tokens(Splicer(tiny_lm("llama")), torch.ones(2, 7), 3) == [[], []]


def shown_nearest(sae, *writes):
    """Token ids that the page shows as an SAE's first latents' vocabulary items."""
    splicer, text = Splicer(tiny_lm("llama")), windows()
    site = Site("any", "any", writes, writes)
    stand_in = StandIn(site, sae, dict.fromkeys(writes, ANY_NORM))
    (found,) = evaluate(splicer, text, [stand_in], tokens=24, keep_firings=True)
    cards = latent_cards(
        splicer, word_tokenizer(), text.held_out, stand_in, found, n_latents=0, named=(0, 1)
    )
    return [card.nearest for card in cards]


def crosscoder(*widths):
    sae = CrosscoderSAE(Sizes(sum(widths), 20, widths=widths))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("writes", "widths", "deepest"),
    [
        (("layers.1", "layers.3"), (16, 16), slice(16, 32)),
        (("layers.3", "layers.1"), (16, 16), slice(0, 16)),
        (("layers.2.mlp.up_proj", "layers.3"), (32, 16), slice(32, 48)),
        (("layers.1", "layers.2.mlp.up_proj"), (16, 32), slice(0, 16)),
        (("layers.2", "layers.2.mlp"), (16, 16), slice(0, 16)),
    ],
    ids=str,
)
def test_of_a_crosscoder_the_part_that_writes_to_the_deepest_layer_is_read(writes, widths, deepest):
    sae, text = crosscoder(*widths), TokenText(word_tokenizer())
    nearest = nearest_tokens(Splicer(tiny_lm("llama")), sae.W_dec[:2, deepest], 10)
    assert shown_nearest(sae, *writes) == [[text(token) for token in tokens] for tokens in nearest]


@pytest.mark.parametrize(
    ("hookpoint", "n"),
    [
        ("layers.1", 10),
        ("layers.1.mlp", 10),
        ("layers.1.self_attn", 10),
        ("layers.1.input_layernorm", 10),
        ("norm", 10),
        ("layers.1.self_attn.q_proj", 0),  # as wide as the residual stream by chance
    ],
)
def test_only_directions_in_the_residual_stream_have_vocabulary_items(hookpoint, n):
    assert [len(items) for items in shown_nearest(random_sae(D_MODEL), hookpoint)] == [n, n]


def test_a_token_keeps_the_space_that_it_begins_with():
    text = TokenText(word_tokenizer())
    assert text(9) == " word7"
    assert text(0) == " <|endoftext|>"
