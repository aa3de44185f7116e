"""An optimizer's options: those that torch can't use are refused before anything is trained."""

import pytest

from sae_mlflow.errors import UserError
from sae_mlflow.optimizers import check_optimizer


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adam", {"betas": [0.9]}, "'adam' can't be used here with .*: IndexError: list index"),
        ("adam", {"lr": 5}, "doesn't take lr. The learning rate is train.learning_rate. It takes"),
        ("adam", {"differentiable": True}, "Adam doesn't take differentiable. It takes amsgrad"),
        ("adam", {"capturable": True}, "Adam doesn't take capturable. It takes amsgrad"),
        ("adam", {"fused": True, "foreach": True}, "RuntimeError: `fused` and `foreach`"),
        ("adam", {"maximize": []}, "'adam' can't be used here with .*: TypeError: "),
        ("asgd", {"t0": "x"}, "'asgd' can't be used here with .*: TypeError: "),
        ("adamax", {"eps": -1.0}, "'adamax' can't be used here with .*: ValueError: "),
    ],
)
def test_options_that_do_not_work_are_one_sentence(name, options, message):
    """Some are met in making the optimizer, some in its first step alone."""
    with pytest.raises(UserError, match=message) as error:
        check_optimizer(name, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": False}])
def test_how_torch_goes_over_the_parameters_may_be_chosen(options):
    check_optimizer("adam", options)


@pytest.mark.parametrize(
    ("name", "why"),
    [("Rprop", "schedule is ignored"), ("lbfgs", "several times"), ("sparseadam", "sparse grad")],
)
def test_what_would_not_train_as_the_settings_say_is_refused_with_the_reason(name, why):
    with pytest.raises(UserError, match=f"train.optimizer = '{name}' can't be used here: .*{why}"):
        check_optimizer(name, {})
