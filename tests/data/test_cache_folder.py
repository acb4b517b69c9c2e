"""Folders of the token cache that cannot be written: nothing is left, none is taken for done."""

import errno

import pytest

from promot_t5x.data import cache_folder


def fill(building):
    cache_folder.write_text(building / "part", "half")


def test_a_full_disk_is_left_as_it_was(tmp_path):
    def full(building):
        fill(building)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache_folder.publish(tmp_path / "cache" / "folder", full)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_get_its_name_is_an_error(tmp_path):
    (tmp_path / "folder").write_text("a file of the user's")
    with pytest.raises(NotADirectoryError, match="folder"):
        cache_folder.publish(tmp_path / "folder", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_quicker_of_two_builders_stays(tmp_path):
    folder = tmp_path / "folder"

    def slower(building):
        cache_folder.publish(folder, fill)
        cache_folder.write_text(building / "part", "the same, later")

    cache_folder.publish(folder, slower)
    assert (folder / "part").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
