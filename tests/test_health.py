"""What a history says about a training: each finding with numbers that can be checked by hand."""

import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sae_mlflow.config_health import HealthSettings
from sae_mlflow.health.check import check
from sae_mlflow.health.facts import Facts, facts_of
from sae_mlflow.health.finding import KINDS, Finding, Verdict, parse_reasons, shown
from sae_mlflow.health.table import health_table

WELL = {
    "total_loss": [0.5, 0.4, 0.36, 0.34, 0.33, 0.325],
    "fvu": [0.5, 0.4, 0.36, 0.34, 0.33, 0.325],
    "val_fvu": [0.5, 0.42, 0.38, 0.36, 0.35, 0.345],
    "l0_norm": [32.0] * 6,
    "val_l0_norm": [32.0] * 6,
    "dead_fraction": [0.0, 0.01, 0.01, 0.01, 0.01, 0.01],
}
TOPK = Facts(
    architecture="topk", d_in=576, d_sae=4096, k=32, learning_rate=2e-3, epochs=6, train_tokens=900
)


def judged(facts=TOPK, thresholds=None, **curves):
    """The verdict on a healthy history with some of its curves replaced."""
    return check(WELL | curves, facts, HealthSettings(**(thresholds or {})))


def only(verdict, code):
    assert [finding.code for finding in verdict.findings] == [code]
    return verdict.findings[0]


def changed(facts=TOPK, **values):
    return Facts(**(vars(facts) | values))


def test_a_training_that_is_well_has_no_findings():
    verdict = judged()
    assert (verdict.status, verdict.reasons, verdict.findings) == ("ok", "", ())
    assert verdict.tags == {"sae.health": "ok", "sae.health.reasons": ""}


def test_a_run_without_an_epoch_that_still_runs_is_well():
    assert check({}, changed(status="RUNNING"), HealthSettings()).status == "ok"


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 1.797e308, -1.7976931348623157e308]
)
def test_nan_and_infinity_also_as_a_store_gives_it_back_are_found_at_their_epoch(value):
    finding = only(judged(total_loss=[0.5, 0.4, value, 0.3, 0.3, 0.3]), "not_finite")
    assert (finding.epoch, finding.severity) == (3, "failed")
    assert not math.isfinite(finding.number)
    assert "train.learning_rate=0.0002" in finding.advice  # a tenth


def test_the_first_of_several_epochs_without_a_number_counts_whatever_the_metric():
    nan = math.nan
    verdict = judged(val_fvu=[0.5, nan, nan, nan, nan, nan], fvu=[0.5, 0.4, nan, nan, nan, nan])
    finding = only(verdict, "not_finite")
    assert finding.epoch == 2 and "val_fvu is NaN" in finding.message


def test_an_fvu_that_rose_by_half_of_the_variance_diverged_where_the_rise_began_to_last():
    """0.35 is the lowest, 0.85 the border: passed at epoch 3, left at 4, passed again at 5."""
    finding = only(judged(val_fvu=[0.5, 0.35, 0.9, 0.8, 0.86, 0.9]), "diverged")
    assert (finding.epoch, finding.number, finding.severity) == (5, 0.9, "failed")
    assert finding.message == "FVU is 0.9 at epoch 6, 0.86 at epoch 5, after 0.35"
    below = [0.5, 0.35, 0.9, 0.8, 0.86, 0.84]
    assert judged(val_fvu=below, fvu=below).status == "ok"


def test_a_training_that_was_never_good_diverged_too():
    """It is over 1.5 from the first epoch on, and falls."""
    verdict = judged(val_fvu=[900.0, 50.0, 20.0, 9.0, 8.0, 7.0])
    assert [(f.code, f.epoch) for f in verdict.findings] == [("diverged", 1), ("fvu_above_1", 1)]


def test_an_fvu_above_1_is_worse_than_the_mean():
    finding = only(judged(val_fvu=[0.9, 1.2, 1.1, 1.05, 1.04, 1.02]), "fvu_above_1")
    assert (finding.epoch, finding.number, finding.severity) == (2, 1.02, "failed")
    assert judged(val_fvu=[1.4, 1.2, 0.9, 0.8, 0.78, 0.75], fvu=[0.75] * 6).status == "ok"


def test_in_the_first_epoch_of_a_training_an_fvu_above_1_may_pass():
    facts = changed(status="RUNNING")
    assert check({"val_fvu": [1.2]}, facts, HealthSettings()).status == "ok"
    assert check({"val_fvu": [1.2, 1.2]}, facts, HealthSettings()).status == "failed"


def test_without_held_out_tokens_the_trainings_fvu_counts():
    history = {"fvu": [1.1, 1.2]}
    assert only(check(history, Facts(), HealthSettings()), "fvu_above_1").number == 1.2


def test_the_largest_jump_of_the_loss_is_a_spike():
    """0.4 to 0.7 is 1.75 times; 0.4 to 0.6 is the border itself."""
    finding = only(judged(total_loss=[0.5, 0.4, 0.7, 0.34, 0.33, 0.32]), "loss_spike")
    assert (finding.epoch, finding.number) == (3, pytest.approx(1.75))
    assert finding.advice.startswith("train.learning_rate=0.001,")  # half
    assert judged(total_loss=[0.5, 0.4, 0.6, 0.34, 0.33, 0.32]).status == "ok"
    assert judged(total_loss=[0.5, 0.01, 0.04, 0.01, 0.01, 0.01]).status == "ok", "a tiny one"


def test_a_loss_that_still_falls_by_over_a_twentieth_has_not_converged():
    """0.40 to 0.34 is 15%, 0.5 to 0.47 is 6%; to 0.48 it is 4%."""
    falling, held_out = [0.9, 0.7, 0.6, 0.5, 0.4, 0.34], [0.8, 0.7, 0.6, 0.55, 0.5, 0.47]
    finding = only(judged(total_loss=falling, val_fvu=held_out, fvu=held_out), "not_converged")
    assert (finding.epoch, finding.number) == (None, pytest.approx(0.06))
    assert finding.advice == "train.epochs=12"
    flatter = [*held_out[:5], 0.48]
    assert judged(total_loss=falling, val_fvu=flatter, fvu=flatter).status == "ok"
    strict = {"last_fall": 0.03}
    assert only(
        judged(TOPK, strict, total_loss=falling, val_fvu=flatter, fvu=flatter), "not_converged"
    )
    alone = check({"total_loss": falling}, TOPK, HealthSettings())
    assert only(alone, "not_converged").number == pytest.approx(0.15)


def test_an_epoch_that_is_not_the_last_is_not_called_unconverged():
    falling = {name: [0.9, 0.7, 0.6, 0.5, 0.4, 0.3] for name in ("total_loss", "fvu", "val_fvu")}
    assert judged(changed(status="RUNNING", epochs=20), **falling).status == "ok"


def test_a_loss_that_stands_still_from_the_first_third_on_is_a_plateau_where_much_is_missed():
    """Within 2% of 0.70 (0.686 to 0.714) from epoch 2 of 6 on; no harm at an FVU of 0.35."""
    still = {"total_loss": [0.9, 0.71, 0.7, 0.7, 0.7, 0.7], "fvu": [0.7] * 6}
    finding = only(judged(val_fvu=[0.7] * 6, **still), "plateau_too_early")
    assert (finding.epoch, finding.number, finding.advice) == (2, 0.7, "sae.k=64")
    assert judged(val_fvu=[0.35] * 6, **still).status == "ok"
    later = still | {"total_loss": [0.9, 0.72, 0.71, 0.7, 0.7, 0.7]}
    assert judged(val_fvu=[0.7] * 6, **later).status == "ok"


def test_held_out_tokens_that_are_missed_by_a_tenth_more_are_a_gap():
    finding = only(judged(fvu=[0.5, 0.4, 0.3, 0.25, 0.22, 0.2]), "validation_gap")
    assert finding.number == pytest.approx(0.145)
    assert finding.advice == "text.tokens=3600"
    early = judged(fvu=[0.5, 0.4, 0.3, 0.2, 0.15, 0.1], val_fvu=[0.5, 0.4, 0.35, 0.36, 0.37, 0.38])
    assert only(early, "validation_gap").advice == "text.tokens=3600, or train.epochs=3"


def test_dead_latents_are_counted_from_the_epoch_on_from_which_they_are_too_many():
    finding = only(judged(dead_fraction=[0.3, 0.05, 0.2, 0.21, 0.2, 0.19]), "dead_latents")
    assert (finding.epoch, finding.number, finding.severity) == (3, 0.19, "warning")
    assert "train.resample_at=[0.25,0.5]" in finding.advice
    resampled = changed(resamples=True)
    assert "resample" not in judged(resampled, dead_fraction=[0.2] * 6).findings[0].advice


def test_dead_latents_that_rise_in_three_epochs_by_over_5_points_are_said_before_they_are_many():
    """0.02 to 0.08 is 6 points, from epoch 4 on; to 0.07 it is 5."""
    rising = [0.0, 0.03, 0.02, 0.04, 0.06, 0.08]
    finding = only(judged(dead_fraction=rising), "dead_latents_rising")
    assert (finding.epoch, finding.number) == (4, pytest.approx(0.06))
    assert judged(dead_fraction=[*rising[:5], 0.065]).status == "ok"
    assert judged(dead_fraction=[0.0, 0.03, 0.0, 0.04, 0.03, 0.08]).status == "ok", "not steadily"


def test_dense_latents_come_from_the_evaluation():
    finding = only(judged(changed(dense_fraction=0.08)), "dense_latents")
    assert (finding.number, finding.advice) == (0.08, "sae.k=16, or sae.d_sae=8192")
    assert judged(changed(dense_fraction=0.05)).status == "ok"


def test_an_l0_of_next_to_nothing_is_a_collapse():
    finding = only(judged(changed(k=1), l0_norm=[5.0, 2.0, 1.4, 1.0, 1.0, 1.0]), "l0_collapsed")
    assert (finding.epoch, finding.number, finding.severity) == (3, 1.0, "failed")
    penalised = changed(architecture="standard", k=None, penalty=("sae.l1_coefficient", 0.02))
    collapse = only(judged(penalised, l0_norm=[0.0] * 6), "l0_collapsed")
    assert collapse.advice == "sae.l1_coefficient=0.005"


def test_an_l0_a_quarter_off_its_target_is_said_at_the_end():
    jumprelu = changed(
        architecture="jumprelu",
        k=None,
        target_l0=32.0,
        penalty=("sae.l0_coefficient", 2.0),
    )
    finding = only(judged(jumprelu, val_l0_norm=[72, 60, 50, 45, 42, 41]), "l0_off_target")
    assert (finding.number, finding.advice) == (41, "train.epochs=12, or sae.l0_coefficient=4")
    assert judged(jumprelu, val_l0_norm=[72, 60, 50, 45, 41, 40]).status == "ok"
    running = changed(jumprelu, status="RUNNING")
    assert judged(running, val_l0_norm=[72.0] * 6).status == "ok"
    assert only(judged(val_l0_norm=[20.0] * 6), "l0_off_target").advice == "sae.k=20"


def test_giant_norms_that_were_left_in_are_said_and_many_that_were_left_out():
    kept = only(judged(changed(largest_norm_ratio=171.0)), "giant_norms")
    assert (kept.number, kept.advice) == (171.0, "activations.max_norm_ratio=10")
    assert judged(changed(largest_norm_ratio=10.0)).status == "ok"
    facts = changed(train_tokens=880, held_out_tokens=100, left_out_tokens=20, max_norm_ratio=10)
    out = only(judged(facts), "tokens_left_out")
    assert out.number == 0.02 and out.advice.startswith("activations.max_norm_ratio=20")
    assert judged(changed(left_out_tokens=9)).status == "ok"  # 9 of 909


@pytest.mark.parametrize(
    ("rate", "said"), [(2.1e-2, True), (1.9e-2, False), (2.1e-4, False), (1.9e-4, True)]
)
def test_a_learning_rate_over_ten_times_off_the_widths_default_is_said(rate, said):
    """1e-3 / sqrt(4096 / 2^14) = 2e-3."""
    verdict = judged(changed(learning_rate=rate))
    assert [f.advice for f in verdict.findings] == ["train.learning_rate=0.002"] * said
    assert judged(changed(learning_rate=rate, optimizer="sgd")).status == "ok"


def test_a_run_that_failed_or_was_interrupted_is_not_well():
    facts = changed(status="FAILED", failure="the disk is full\nTraceback", epochs=20)
    finding = only(judged(facts), "run_failed")
    assert finding.severity == "failed"
    assert finding.message == "the run failed after epoch 6 of 20: the disk is full"
    finding = only(judged(changed(status="KILLED")), "interrupted")
    assert finding.severity == "warning" and "--resume auto" in finding.advice
    nan = judged(facts, total_loss=[math.nan] * 6)
    assert only(nan, "not_finite"), "which says more than that it failed"


def test_the_worst_comes_first_and_a_broken_training_is_told_no_trifles():
    verdict = judged(
        changed(largest_norm_ratio=50.0),
        val_fvu=[3.0] * 6,
        dead_fraction=[0.5] * 6,
        total_loss=[9.0, 8.0, 7.0, 6.0, 5.0, 4.0],
    )
    assert verdict.reasons == "diverged at epoch 1, fvu_above_1 at epoch 1, giant_norms"
    assert verdict.status == "failed"


def test_an_epoch_that_was_not_logged_is_no_nan():
    history = {"total_loss": [0.5, None, 0.4, 0.39], "l0_norm": [32.0]}
    assert check(history, TOPK, HealthSettings()).status == "ok"


def test_facts_are_read_from_params_as_text_or_as_they_are():
    text = {
        "sae.architecture": "jumprelu",
        "sae.k": "32",
        "sae.target_l0": "48.0",
        "sae.l0_coefficient": "2.0",
        "d_sae": "4608",
        "train.learning_rate": "0.0019",
        "train.resample_at": "",
        "train.epochs": "6",
        "data.giant_norm_train_tokens": "3",
        "data.giant_norm_held_out_tokens": "1",
    }
    facts = facts_of(text, {"latents_over_10_percent": 0.01}, "FINISHED")
    assert (facts.k, facts.l0_target, facts.penalty) == (None, 48.0, ("sae.l0_coefficient", 2.0))
    assert (facts.d_sae, facts.epochs, facts.left_out_tokens) == (4608, 6, 4)
    assert (facts.dense_fraction, facts.resamples) == (0.01, False)
    transcoder = {"sae.architecture": "transcoder", "sae.codes": "topk", "sae.k": 32}
    assert facts_of(transcoder, {}, "FINISHED").l0_target == 32
    gated = {"sae.architecture": "gated", "sae.k": 32, "train.resample_at": (0.25, 0.5)}
    assert facts_of(gated, {}, "FINISHED").l0_target is None
    assert facts_of(gated, {}, "FINISHED").resamples
    assert facts_of({}, {}, "FINISHED").learning_rate is None


def test_a_verdict_is_json_without_nan():
    finding = Finding("not_finite", "total_loss is NaN", "train.learning_rate=1e-4", math.nan, 3)
    text = Verdict((finding,)).to_json()
    assert json.loads(text) == {
        "status": "failed",
        "findings": [
            {
                "severity": "failed",
                "code": "not_finite",
                "message": "total_loss is NaN",
                "advice": "train.learning_rate=1e-4",
                "number": "nan",
                "epoch": 3,
            }
        ],
    }
    assert "NaN," not in text


def test_reasons_are_read_back_from_the_tag():
    found = parse_reasons("loss_spike at epoch 3, not_converged, of_tomorrow, <b>")
    assert found == [("loss_spike", 3), ("not_converged", None)]
    assert shown(found) == "loss spike (epoch 3), not converged"
    assert (
        shown([("fvu_above_1", None), ("l0_collapsed", 2)]) == "FVU above 1, L0 collapsed (epoch 2)"
    )
    assert parse_reasons("") == []


def test_every_threshold_says_in_its_docstring_which_finding_it_decides():
    described = {
        match[1]
        for name, field in HealthSettings.model_fields.items()
        if name != "on_failure" and (match := re.match(r"`(\w+)`", field.description or ""))
    }
    without_threshold = {"not_finite", "run_failed", "interrupted"}
    assert described == set(KINDS) - without_threshold


def test_the_documentation_has_every_finding_with_its_severity_threshold_and_default():
    text = (Path(__file__).parents[1] / "docs" / "health.md").read_text(encoding="utf-8")
    rows = {
        cells[0]: cells[1:]
        for line in text.splitlines()
        if (cells := re.findall(r"(?<=\| )([^|]*?)(?= \|)", line)) and cells[0].startswith("`")
    }
    assert set(rows) == {f"`{code}`" for code in KINDS}
    for code, kind in KINDS.items():
        assert rows[f"`{code}`"][0] == kind.severity
    for name, field in HealthSettings.model_fields.items():
        if name != "on_failure":
            code = re.match(r"`\w+`", field.description or "")[0]
            assert f"`health.{name}` = {field.default:g}" in rows[code]


@pytest.mark.parametrize("width", [80, 120])
def test_no_setting_is_cut_from_a_terminals_table(width):
    """Every `key=value` of the advice can be copied whole."""
    finding = Finding(
        "giant_norms",
        "a token that was trained on has a norm 171 times the median",
        "activations.max_norm_ratio=10, or train.resample_at=[0.25,0.5]",
        171.0,
    )
    row = SimpleNamespace(run_id="65cf7e86a181416d80a2a2b181266ae6", layer="layer10\x1b[2J")
    out = io.StringIO()
    console = Console(width=width, file=out, force_terminal=True, color_system=None)
    console.print(health_table([(row, Verdict((finding,))), (row, Verdict())], width))
    text = out.getvalue()
    for part in ("65cf7e86 ", "171", "activations.max_norm_ratio=10", "resample_at=[0.25,0.5]"):
        assert part in text
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text and "\x1b[2J" not in text
