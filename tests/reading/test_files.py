"""files.py: files are written whole or not at all."""

import os

import pytest

from reading.files import write_atomically


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, full_disk):
    path = tmp_path / "a.pt"
    path.write_bytes(b"old")
    with full_disk(1000), pytest.raises(OSError, match=r"a\.pt"):
        write_atomically(path, bytes(2000))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


def test_a_link_stays_a_link_and_pipes_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "inner").mkdir()
    link, target, pipe = tmp_path / "link", tmp_path / "inner" / "target", tmp_path / "pipe"
    link.symlink_to(target)
    for content in (b"new", b"newer"):  # there is no target at first
        write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
    (tmp_path / "null").symlink_to(os.devnull)  # the device itself is not put at risk
    write_atomically(tmp_path / "null", b"nowhere")
    assert (tmp_path / "null").is_char_device()
    with pytest.raises(OSError, match="/dev/full"):
        write_atomically("/dev/full", b"nowhere")
