"""Checkpoint files: whole or not there, by torch.load and zipfile as by us, and damaged ones told by name."""

import multiprocessing
import os
import random
import resource
import signal
import zipfile

import pytest
import torch

from backbones.errors import HeadsetError
from headset import whole_files
from headset.checkpoint import read_checkpoint
from headset.checkpoint_io import CheckpointFiles
from headset.whole_files import check_whole, newest_whole, save_checkpoint

CONTENT = {"weights": torch.arange(300.0).reshape(30, 10), "name": "x", "more": {"one": torch.ones(3)}}


def same(content):
    return content["name"] == "x" and torch.equal(content["weights"], CONTENT["weights"])


def test_stock_torch_and_zipfile_read_what_is_written(tmp_path):
    path = tmp_path / "a.ckpt"
    save_checkpoint(CONTENT, path)
    for mmap in (False, True):
        assert same(torch.load(path, mmap=mmap, weights_only=True))
    assert zipfile.ZipFile(path).testzip() is None
    assert [each.name for each in tmp_path.iterdir()] == ["a.ckpt"]
    check_whole(path)
    assert same(CheckpointFiles().load_checkpoint(path, weights_only=True))


def test_a_byte_changed_anywhere_and_a_cut_anywhere_are_told(tmp_path):
    path, bad = tmp_path / "a.ckpt", tmp_path / "bad.ckpt"
    save_checkpoint(CONTENT, path)
    content, dice = path.read_bytes(), random.Random(0)
    places = [*range(0, len(content), 7), *range(len(content) - 120, len(content))]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << dice.randrange(8)
        for wrong in (bytes(changed), content[:place], content + bytes(place % 5 + 1)):
            bad.write_bytes(wrong)
            assert not whole_files._is_whole(bad, len(wrong)), place


def test_one_without_a_digest_is_checked_by_the_sums_of_the_zip_file(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save(CONTENT, path)
    check_whole(path)
    content = bytearray(path.read_bytes())
    content[content.index(CONTENT["weights"].numpy().tobytes()) + 50] ^= 4
    path.write_bytes(content)
    with pytest.raises(HeadsetError, match="is damaged"):
        check_whole(path)


def test_the_newest_whole_one_beside_a_damaged_one_is_named(tmp_path):
    for number, name in enumerate(("first", "second", "third", "last")):
        save_checkpoint(CONTENT, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (number, number))
    for name in ("third", "last"):
        (tmp_path / f"{name}.ckpt").write_bytes((tmp_path / f"{name}.ckpt").read_bytes()[:-9])
        os.utime(tmp_path / f"{name}.ckpt", (9, 9))
    (tmp_path / "link.ckpt").symlink_to("last.ckpt")
    (tmp_path / ".whole.ckpt.1.part").write_bytes((tmp_path / "first.ckpt").read_bytes())
    for name in ("last", "link"):
        with pytest.raises(
            HeadsetError, match=rf"{name}.ckpt cannot be read: it is damaged.*--ckpt_path {tmp_path}/second.ckpt"
        ):
            read_checkpoint(str(tmp_path / f"{name}.ckpt"))
    with pytest.raises(HeadsetError, match=rf"There is no checkpoint.*--ckpt_path {tmp_path}/second.ckpt"):
        read_checkpoint(str(tmp_path / "gone.ckpt"))
    assert newest_whole(tmp_path / "nowhere") is None


def in_a_child(function):
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_write_that_is_killed_leaves_the_one_before_and_its_leftovers_go(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.ckpt"
    save_checkpoint(CONTENT, path)
    before = path.read_bytes()

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def write():
        places = {"write": (whole_files._Digesting, "write"), "fsync": (os, "fsync")}
        monkeypatch.setattr(*places.get(moment, (type(path), "replace")), die)
        save_checkpoint({"other": torch.ones(9)}, path)

    assert in_a_child(write) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    assert newest_whole(tmp_path) == path
    save_checkpoint(CONTENT, tmp_path / "b.ckpt")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]


def test_a_writer_that_lives_keeps_what_it_writes(tmp_path, monkeypatch):
    write, inner = whole_files._Digesting.write, []

    def meanwhile(self, data):
        if not inner:
            inner.append(True)
            assert in_a_child(lambda: save_checkpoint(CONTENT, tmp_path / "b.ckpt")) == 0
        return write(self, data)

    monkeypatch.setattr(whole_files._Digesting, "write", meanwhile)
    save_checkpoint(CONTENT, tmp_path / "a.ckpt")
    check_whole(tmp_path / "a.ckpt")
    check_whole(tmp_path / "b.ckpt")


def test_no_room_is_one_error_and_the_one_before_stays(tmp_path):
    path = tmp_path / "a.ckpt"
    save_checkpoint(CONTENT, path)
    before = path.read_bytes()

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with pytest.raises(HeadsetError, match=rf"While writing {path}: the file is larger"):
            save_checkpoint({"large": torch.ones(90000)}, path)

    assert in_a_child(write) == 0
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.ckpt"]
