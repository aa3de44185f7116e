"""A cache that several people share: what another's files forbid is said, and costs nobody."""

import pytest
from cached_acts import filled, planned
from plain_user import plain_user

from sae_mlflow.activations import cache
from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.commands.cache import cache_list, cache_prune
from sae_mlflow.errors import UserError
from sae_mlflow.lm.loading import load_language_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def entry(tiny_settings):
    """A colleague's entry; made writable again, so that it can be removed."""
    plan = filled(tiny_settings("model.layers=[1]"))
    yield plan
    if plan.folder.exists():
        plan.folder.chmod(0o755)


def lock_file(entry):
    return cache.activations_folder() / "locks" / f"{entry.key}.lock"


def fill(settings):
    list(fill_activations(planned(settings), load_language_model(settings.model)))


def test_a_lock_that_may_not_be_taken_is_named(entry, tiny_settings, capsys):
    file = lock_file(entry)
    file.touch()
    file.chmod(0o444)
    with plain_user():
        with pytest.raises(UserError) as error:
            fill(tiny_settings("model.layers=[1,2]"))
        cache_prune([entry.key])
    assert str(error.value) == (
        f"The lock {file} can't be taken: Permission denied. Ask its owner to let you write to it, "
        "or point SAE_MLFLOW_CACHE at a folder of your own."
    )
    assert capsys.readouterr().out == f"left    {entry.key}: {error.value}\nfreed 0 B\n"
    assert not planned(entry.settings).missing


def test_an_entry_that_may_not_be_written_is_named(entry, tiny_settings, capsys):
    entry.folder.chmod(0o555)
    with plain_user():
        with pytest.raises(UserError, match=rf"can't be written to {entry.folder}/.*: Permission "):
            fill(tiny_settings("model.layers=[1,2]"))
        cache_prune(None, everything=True)
    reason = f"{entry.folder} can't be removed: Permission denied"
    assert capsys.readouterr().out == f"left    {entry.key}: {reason}\nfreed 0 B\n"
    assert not planned(entry.settings).missing


def test_a_cache_that_may_not_be_written_is_named_before_the_model_is_loaded(entry, tiny_settings):
    folder = cache.activations_folder()
    folder.chmod(0o555)
    try:
        with plain_user():
            assert not planned(entry.settings).missing
            with pytest.raises(UserError) as error:
                planned(tiny_settings("model.layers=[1,2]"))
    finally:
        folder.chmod(0o755)
    assert str(error.value) == (
        f"{folder} can't be written: Permission denied. Point SAE_MLFLOW_CACHE at a folder of your "
        "own."
    )


def test_an_entry_that_may_not_be_read_is_listed(entry, capsys):
    entry.folder.chmod(0o000)
    with plain_user():
        cache_list()
    assert entry.key in capsys.readouterr().out


def test_an_entry_that_is_being_written_is_said_to_stay(entry, capsys):
    lock = cache.lock_of(entry.key)
    with lock:
        cache_prune([entry.key])
    assert capsys.readouterr().out == f"left    {entry.key}: it is being written\nfreed 0 B\n"
