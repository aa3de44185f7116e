"""A file that takes its place whole; and whose fault it is where it doesn't."""

import shutil

import pytest
from faults.full_disk import small_disk

from sae_mlflow.errors import UserError
from sae_mlflow.whole_file import whole_file


def test_after_any_error_the_file_is_as_it_was(tmp_path):
    file = tmp_path / "deep" / "file.txt"
    with whole_file(file) as part:
        part.write_text("first")
    with pytest.raises(ZeroDivisionError), whole_file(file) as part:
        part.write_text("second")
        _ = 1 / 0
    assert file.read_text() == "first" and [*file.parent.iterdir()] == [file]


def test_what_the_block_reads_elsewhere_is_not_the_targets_fault(tmp_path):
    with pytest.raises(FileNotFoundError) as error, whole_file(tmp_path / "x") as part:
        part.write_text((tmp_path / "nowhere").read_text())
    assert error.value.filename == str(tmp_path / "nowhere")
    assert not [*tmp_path.iterdir()]


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with small_disk(tmp_path / "disk", megabytes=0.004) as disk:
        for target, reason in [
            (tmp_path / "file" / "x", f"{tmp_path}/file is a file"),
            (tmp_path / "folder", "Is a directory"),
            (disk / "x", "No space left on device"),
        ]:
            with pytest.raises(UserError) as error, whole_file(target) as part:
                part.write_bytes(bytes(10_000))
            assert str(error.value) == (
                f"{target} can't be written: {reason}. Choose a folder that can be."
            )


def test_a_copy_for_which_there_is_no_room_is_the_targets_fault(tmp_path):
    (tmp_path / "source").write_bytes(bytes(10_000))
    with (
        small_disk(tmp_path / "disk", megabytes=0.004) as disk,
        pytest.raises(UserError, match=f"{disk}/x can't be written: No space left"),
        whole_file(disk / "x") as part,
    ):
        shutil.copyfile(tmp_path / "source", part)
