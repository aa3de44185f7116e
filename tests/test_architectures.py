"""Every architecture's loss and gradients against plain dense autograd, and how it starts."""

import dense_reference as dense
import pytest
import torch
from random_saes import D_IN, D_OUT, D_SAE, assert_agree, gradients, made
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_mlflow.config_sae import SAESettings
from sae_mlflow.errors import UserError
from sae_mlflow.sae import Batch, build_sae, sae_from_config, sparse

pytestmark = pytest.mark.usefixtures("one_thread")

L1 = {"l1_coefficient": 0.3}
L0 = {"l0_coefficient": 0.02, "bandwidth": 0.4}
TOPK = {"k": 5, "aux_k": 6}
CASES = {
    "standard": {"architecture": "standard", **L1},
    "topk": {"architecture": "topk", **TOPK},
    "batchtopk": {"architecture": "batchtopk", **TOPK},
    "matryoshka": {"architecture": "matryoshka", "prefixes": (7, 20, 50), **TOPK},
    "gated": {"architecture": "gated", **L1},
    "jumprelu": {"architecture": "jumprelu", **L0},
    "jumprelu to a target": {"architecture": "jumprelu", "target_l0": 9.0, **L0},
    "transcoder": {"architecture": "transcoder", **TOPK},
    "skip transcoder": {"architecture": "skip_transcoder", **TOPK},
    "jumprelu transcoder": {"architecture": "transcoder", "codes": "jumprelu", **L0},
    "jumprelu skip": {"architecture": "skip_transcoder", "codes": "jumprelu", **L0},
    "crosscoder": {"architecture": "crosscoder", "widths": (4, 6), **L1},
}
TOPK_FAMILY = ("topk", "batchtopk", "matryoshka")
UNIT_NORM = (*TOPK_FAMILY, "jumprelu", "gated")


def reference(sae, batch, dead, case):
    """Total, reconstruction, latents and gradients as the papers write them, in float64."""
    settings = CASES[case]
    name, codes = settings["architecture"], settings.get("codes", "topk")
    centred = "transcoder" not in name
    match codes if not centred else name:
        case "topk" | "batchtopk":
            loss_of, arguments = dense.topk, {"k": 5, "batch": name == "batchtopk"}
            arguments["centred"] = centred
        case "matryoshka":
            loss_of, arguments = dense.matryoshka, {"k": 5, "prefixes": (7, 20, 50, D_SAE)}
        case "standard" | "gated":
            loss_of, arguments = getattr(dense, name), {"l1": 0.3}
        case "crosscoder":
            loss_of, arguments = dense.crosscoder, {"l1": 0.3, "widths": (4, 6)}
        case "jumprelu":
            target = settings.get("target_l0")
            arguments = {"l0": 0.02, "eps": 0.4, "target": target, "centred": centred}
            loss_of = dense.jumprelu
    if hasattr(sae, "aux_k"):
        arguments |= {"dead": dead, "aux_k": 6}
    p = {name: v.detach().double().requires_grad_() for name, v in sae.named_parameters()}
    total, recon, latents = loss_of(p, *(acts.double() for acts in batch), **arguments)
    return total, recon, latents, dict(zip(p, torch.autograd.grad(total, p.values()), strict=True))


@pytest.fixture(params=["sparse", "dense"])
def way(request, monkeypatch):
    """Both ways to go from activations to a loss, whatever share of latents fires."""
    monkeypatch.setattr(sparse, "DENSE_FROM", 0.0 if request.param == "dense" else 1.1)
    return request.param


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_dense_autograd(case, dtype, relative, seed, way):
    sae, batch, dead = made(**CASES[case], seed=seed, dtype=dtype)
    total, recon, latents, expected = reference(sae, batch, dead, case)
    assert 0.01 < (latents > 0).double().mean() < 0.2, "a case of this test that tests little"

    loss = sae.loss(batch, dead)
    assert_agree(loss.total, total, relative)
    assert_agree(loss.recon, recon, relative)
    assert_agree(loss.l0, (latents > 0).sum(dim=1).double().mean(), 1e-6)
    assert torch.equal(loss.fired, (latents > 0).any(dim=0))
    for name, gradient in gradients(sae, loss.total).items():
        assert expected[name].abs().max() > 0, f"nothing is learnt by {name}"
        assert gradient.dtype == dtype
        assert_agree(gradient, expected[name], relative, name)


@pytest.mark.parametrize("case", CASES)
def test_one_token_is_a_batch(case, way):
    sae, batch, _ = made(**CASES[case], batch=1)
    nobody = torch.zeros(D_SAE, dtype=torch.bool)
    total, recon, _, expected = reference(sae, batch, nobody, case)
    loss = sae.loss(batch, nobody)
    assert_agree(loss.total, total, 1e-10)
    assert_agree(loss.recon, recon, 1e-10)
    for name, gradient in gradients(sae, loss.total).items():
        assert_agree(gradient, expected[name], 1e-10, name)


@pytest.mark.parametrize("case", CASES)
def test_no_token_teaches_nothing(case, way):
    sae, batch, dead = made(**CASES[case], batch=0)
    loss = sae.loss(batch, dead)
    assert loss.recon.shape == (0, sae.d_out)
    assert loss.l0 == 0 and not loss.fired.any()
    assert all((g == 0).all() for g in gradients(sae, loss.total).values())
    assert sae(batch.x).shape == (0, sae.d_out)
    assert sae.encode(batch.x).shape == (0, D_SAE)


@pytest.mark.parametrize("case", CASES)
def test_forward_is_decode_of_encode_for_any_leading_shape(case, way):
    sae, (x, _), _ = made(**CASES[case], batch=24)
    acts = x.view(4, 6, -1)
    latents = sae.encode(acts)
    assert latents.shape == (4, 6, D_SAE)
    assert_agree(latents.view(24, D_SAE), sae.encode(x), 1e-12)
    assert_agree(sae(acts), sae.decode(latents, acts), 1e-12)
    assert_agree(sae.reconstruct(x).recon, sae(x), 1e-12)
    assert sae.encode(x[0]).shape == (D_SAE,)


@pytest.mark.parametrize("case", ["standard", "gated", "jumprelu", "crosscoder"])
def test_the_warmup_scales_the_sparsity_penalty_alone(case):
    sae, batch, dead = made(**CASES[case])
    whole, half, none = (sae.loss(batch, dead, warmup) for warmup in (1.0, 0.5, 0.0))
    assert whole.sparsity > 0 and none.sparsity == 0
    assert_agree(half.sparsity, whole.sparsity / 2, 1e-12)
    assert_agree(whole.total - none.total, whole.sparsity, 1e-12)


# -- memory -----------------------------------------------------------------------------------


def largest_kept_for_backward(sae, batch, dead):
    """In bytes, so that masks count."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        sae.loss(batch, dead)
    return max(tensor.untyped_storage().nbytes() for tensor in kept)


@pytest.mark.parametrize("architecture", TOPK_FAMILY)
def test_the_topk_family_keeps_not_even_a_mask_of_batch_times_latents(architecture, monkeypatch):
    """AuxK is on, with 4 of some 150 dead latents to decode; the dense way shows what it saves."""
    sae, batch, dead = made(architecture, k=4, aux_k=4, d_sae=512, batch=256)
    assert largest_kept_for_backward(sae, batch, dead) < 256 * 512
    monkeypatch.setattr(sparse, "DENSE_FROM", 0.0)
    assert largest_kept_for_backward(sae, batch, dead) >= 256 * 512


class MatricesMade(TorchDispatchMode):
    """How many tensors with at least so many elements operators allocate."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.n = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in there:
            self.n += made.numel() >= self.elements
        return made


@pytest.mark.parametrize("architecture", TOPK_FAMILY)
def test_dead_latents_cost_no_matrix_as_large_as_the_weights(architecture):
    """Indexing rows of a parameter has a gradient of its size; four of 37 MB at 768 x 12,288."""
    sae, batch, _ = made(architecture, k=4, aux_k=4, d_sae=512, batch=16)
    counts = []
    for n_dead in (0, 5):
        with MatricesMade(512 * D_IN) as matrices:
            sae.loss(batch, torch.arange(512) < n_dead).total.backward()
        counts.append(matrices.n)
        sae.zero_grad()
    assert counts[0] == counts[1] > 0


# -- JumpReLU ---------------------------------------------------------------------------------


def loaded_jumprelu(thresholds):
    """Latents of the one activation p are jumprelu(p) with these thresholds."""
    n = len(thresholds)
    sae = sae_from_config({"architecture": "jumprelu", "d_in": 1, "d_sae": n})
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.threshold.copy_(torch.tensor(thresholds))
    return sae


def test_a_latent_fires_strictly_above_its_loaded_threshold(way):
    sae = loaded_jumprelu([0.0, 0.5, 1.0, 2.0])
    assert sae.encode(torch.tensor([1.0])).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert sae.encode(torch.tensor([-1.0])).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_a_threshold_that_was_stored_below_zero_is_one_of_zero(way):
    sae = loaded_jumprelu([-0.5])
    assert sae.encode(torch.tensor([[-0.3], [0.0], [0.2]])).tolist() == [
        [0.0],
        [0.0],
        [pytest.approx(0.2)],
    ]


def test_thresholds_stay_at_zero_or_above():
    sae, _, _ = made("jumprelu")
    with torch.no_grad():
        sae.threshold[:3] = torch.tensor([-1.0, 0.0, 0.5])
    sae.constrain()
    assert sae.threshold[:3].tolist() == [0.0, 0.0, 0.5]


def test_a_target_penalises_the_share_by_which_the_batchs_l0_misses_it():
    """L0 = 2 against a target of 4: (2/4 - 1)^2 = 1/4 of the coefficient."""
    sae = build_sae(
        SAESettings(architecture="jumprelu", d_sae=4, target_l0=4.0, l0_coefficient=0.8), (1,)
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 1.0, -1.0, -1.0]]))
    x = torch.tensor([[3.0], [5.0]])
    loss = sae.loss(Batch(x, x), torch.zeros(4, dtype=torch.bool))
    assert loss.l0 == 2.0
    assert loss.sparsity.item() == pytest.approx(0.2)


# -- Matryoshka -------------------------------------------------------------------------------


def test_prefixes_are_a_sixteenth_to_all_of_the_latents_unless_they_are_given():
    def prefixes(d_sae, given=None):
        settings = SAESettings(architecture="matryoshka", d_sae=d_sae, k=1, prefixes=given)
        return build_sae(settings, (4,)).prefixes

    assert prefixes(96) == (6, 12, 24, 48, 96)
    assert prefixes(8) == (1, 2, 4, 8)
    assert prefixes(96, (10, 96)) == (10, 96)
    assert prefixes(96, (10, 20)) == (10, 20, 96)
    for wrong in [(20, 10), (10, 10), (10, 97)]:
        with pytest.raises(UserError, match="they have to ascend up to d_sae = 96"):
            prefixes(96, wrong)


def test_one_prefix_of_all_latents_is_batchtopk():
    one, batch, dead = made("matryoshka", k=5, prefixes=(D_SAE,))
    other, _, _ = made("batchtopk", k=5)
    got, expected = one.loss(batch, dead), other.loss(batch, dead)
    assert_agree(got.total, expected.total, 1e-12)
    gradient = gradients(other, expected.total)
    for name, mine in gradients(one, got.total).items():
        assert_agree(mine, gradient[name], 1e-12, name)


# -- the start, and what is held --------------------------------------------------------------


def started(architecture, seed=0, **settings):
    widths = (4, 6) if architecture == "crosscoder" else (D_IN,)
    settings = SAESettings(architecture=architecture, d_sae=D_SAE, k=5, **settings)
    sae = build_sae(settings, widths, D_OUT)
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(50, D_IN, generator=generator) + 3
    y = torch.randn(50, D_OUT, generator=generator) - 2 if sae.transcodes else x
    sae.initialise(Batch(x, y), torch.Generator().manual_seed(seed))
    return sae, Batch(x, y)


@pytest.mark.parametrize(
    "architecture",
    ["standard", "topk", "batchtopk", "matryoshka", "gated", "jumprelu", "crosscoder"],
)
def test_an_autoencoder_starts_with_unit_rows_their_transpose_and_the_samples_mean(architecture):
    sae, sample = started(architecture)
    assert_agree(sae.W_dec.norm(dim=1), torch.ones(D_SAE), 1e-6)
    if architecture in ("gated", "jumprelu"):
        lengths = sae.W_enc.norm(dim=0)
        assert_agree(lengths, lengths.mean().expand(D_SAE), 1e-6)
        assert_agree(sae.W_enc / lengths, sae.W_dec.t(), 1e-6)
    else:
        length = 0.6 if architecture in TOPK_FAMILY else 1.0
        assert torch.equal(sae.W_enc, length * sae.W_dec.t())
    assert sae.W_enc.t().is_contiguous(), "what the sparse kernels are fast with"
    assert_agree(sae.b_dec, sample.y.mean(dim=0), 1e-6)
    for name, parameter in sae.named_parameters():
        if name in ("b_mag", "r_mag"):
            assert (parameter == 0).all()


@pytest.mark.parametrize("codes", ["topk", "jumprelu"])
@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_a_transcoder_starts_by_predicting_the_targets_mean(architecture, codes):
    sae, (x, y) = started(architecture, codes=codes)
    assert (sae.W_dec == 0).all()
    assert sae.W_dec.shape == (D_SAE, D_OUT)
    assert (sae.W_skip is not None) == (architecture == "skip_transcoder")
    assert_agree(sae.W_enc.norm(dim=0), torch.ones(D_SAE), 1e-6)
    assert_agree(sae(x), y.mean(dim=0).expand(50, D_OUT), 1e-6)


def test_a_seed_is_the_same_start_and_another_seed_another():
    assert torch.equal(started("topk")[0].W_enc, started("topk")[0].W_enc)
    assert not torch.equal(started("topk")[0].W_enc, started("topk", seed=1)[0].W_enc)


@pytest.mark.parametrize("case", CASES)
def test_decoder_rows_are_held_at_unit_length_where_sparsity_is_counted(case):
    """Not where an L1 penalty weighs lengths that learn from it, nor in transcoders."""
    sae, batch, dead = made(**CASES[case])
    before = sae.W_dec.detach().clone()
    sae.loss(batch, dead).total.backward()
    gradient = sae.W_dec.grad.clone()
    sae.project_gradient()
    sae.constrain()
    if CASES[case]["architecture"] not in UNIT_NORM:
        assert torch.equal(sae.W_dec, before)
        assert torch.equal(sae.W_dec.grad, gradient)
        return
    lengths = before.norm(dim=1, keepdim=True)
    assert_agree(sae.W_dec, before / lengths, 1e-12)


@pytest.mark.parametrize("architecture", UNIT_NORM)
def test_the_gradient_of_a_unit_row_has_no_part_along_it(architecture):
    sae, batch, dead = made(architecture, k=5)
    sae.constrain()
    sae.loss(batch, dead).total.backward()
    along = (sae.W_dec.grad * sae.W_dec).sum(dim=1, keepdim=True)
    expected = sae.W_dec.grad - along * sae.W_dec
    sae.project_gradient()
    assert_agree(sae.W_dec.grad, expected.detach(), 1e-12)
    assert (sae.W_dec.grad * sae.W_dec).sum(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("architecture", "settings", "setting", "weight"),
    [
        ("standard", {}, "l1_coefficient", 2 / 4),
        ("crosscoder", {}, "l1_coefficient", 2 / 6),
        ("gated", {}, "l1_coefficient", 3.5 / 4),
        ("jumprelu", {}, "l0_coefficient", 1 / 4),
        ("jumprelu", {"target_l0": 3}, "l0_coefficient", 2.0),
        ("transcoder", {"codes": "jumprelu"}, "l0_coefficient", 1 / 7),
    ],
)
def test_a_penaltys_weight_is_for_a_loss_that_is_a_mean_over_dimensions(
    architecture, settings, setting, weight
):
    """4 dimensions are read, 6 of a crosscoder's other layer, and 7 written by a transcoder."""
    chosen = SAESettings(architecture=architecture, d_sae=8, **settings)
    sae = build_sae(chosen, (4, 6) if architecture == "crosscoder" else (4,), 7)
    assert getattr(sae, setting) == pytest.approx(weight)
    given = build_sae(chosen.model_copy(update={setting: 0.125}), (4,), 7)
    assert getattr(given, setting) == 0.125


@pytest.mark.parametrize(
    ("architecture", "chosen"),
    [
        ("topk", {"aux_k": 2}),
        ("matryoshka", {"aux_k": 2, "prefixes": (2, 4, 8, 16, 32)}),
        ("gated", {"l1_coefficient": 3.5 / 4}),
        ("jumprelu", {"l0_coefficient": 1 / 4}),
        ("transcoder", {"aux_k": 3}),
    ],
)
def test_an_sae_says_what_it_chose_for_what_was_unset(architecture, chosen):
    sae = build_sae(SAESettings(architecture=architecture, k=2), (4,), 7)
    assert sae.chosen_settings() == {"d_sae": 32} | chosen
