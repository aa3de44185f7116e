"""The plain files of a training, in a folder that can't be written any more."""

import logging

import pytest
import torch
from faults.full_disk import small_disk
from saved_saes import Acts, saved

from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.formats.sae_files import export_sae, read_stored
from sae_mlflow.lm.sites import sites
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.outputs import pictures, write_layer
from sae_mlflow.whole_file import check_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_full_output_folder_costs_a_warning_and_no_layer(tiny_settings, tmp_path, caplog):
    """The disk has room for no SAE; the store is on another."""
    with small_disk(tmp_path / "disk", megabytes=0.06) as disk:
        settings = tiny_settings(
            f"output.dir={disk}",
            "output.pt=true",
            "evaluate.after_training=false",
            "plots.after_training=false",
        )
        training = run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
        for layer in ("layer1", "layer2"):
            assert f"output.dir: the files of {layer} can't be written to {disk}" in caplog.text
        assert "No space left" in caplog.text
    runs = training.store.layer_runs(training.experiment.id)
    assert [run.status for run in runs] == ["FINISHED"] * 2


@pytest.mark.parametrize("room", [0.004, 0.012, 0.016, 0.02], ids=lambda room: f"{room} MB")
def test_whichever_file_the_disk_has_no_room_for_it_is_a_warning(room, tmp_path, caplog):
    """In pages of 4 kB: a history takes one, weights three, their config one, the `.pt` four."""
    settings = Settings.model_validate(
        {"model": {"name": "m", "layers": [10]}, "output": {"dir": str(tmp_path), "pt": True}}
    )
    sae, _ = saved(tmp_path / "sae")
    scale = torch.ones(10).double()
    acts = Acts(sites(settings)[0], scale, scale)
    with small_disk(tmp_path / "m", megabytes=room), caplog.at_level(logging.WARNING):
        write_layer(settings, sae, acts, {"total_loss": [1.0] * 10})
    assert "the files of layer10 can't be written to" in caplog.text
    (line,) = caplog.text.strip().splitlines()
    assert "The training goes on; the store has what they hold" in line


def test_a_closed_output_folder_costs_a_warning(tmp_path, caplog):
    settings = Settings.model_validate({"model": {"name": "m"}, "output": {"dir": str(tmp_path)}})
    (tmp_path / "m").write_text("")
    write_layer(settings, None, Acts(sites(settings)[0], None, None), {"total_loss": [1.0]})
    assert "can't be written to" in caplog.text and "File exists" in caplog.text


@pytest.mark.parametrize("name", ["sae_lens", "sparsify", "dictionary_learning", "pt"])
def test_an_export_to_a_full_disk_is_one_sentence(name, tmp_path):
    saved(tmp_path / "sae")
    stored, _ = read_stored(tmp_path / "sae")
    with (
        small_disk(tmp_path / "disk", megabytes=0.008) as disk,
        pytest.raises(UserError, match=rf"{disk}/out can't be written: "),
    ):
        export_sae(stored, name, disk / "out")


def test_a_folder_whose_name_can_be_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"output\.dir: .* can't be written: .*null byte"):
        check_folder(tmp_path / "a\0b", "output.dir")


def test_a_home_in_a_setting_is_the_users(tmp_path, monkeypatch):
    """A shell leaves `--output-dir=~/saes` as it is, and nothing expands what stands in a file."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    output = {"dir": "~/saes", "tensorboard_dir": "~/tb"}
    settings = Settings.model_validate({"model": {"name": "m"}, "output": output})
    write_layer(settings, None, Acts(sites(settings)[0], None, None), {"total_loss": [1.0]})
    assert (tmp_path / "home" / "saes" / "m").is_dir() and not (tmp_path / "~").exists()
    assert settings.output.tensorboard_folder == tmp_path / "home" / "tb"
    assert pictures(settings).output_dir == tmp_path / "home" / "saes"
