"""Sources: a person's folder, whatever lies in it, gives the same batches again, and loses nothing."""

import logging

import numpy as np
import PIL.Image
import pytest
import torch

from chameleon_lab.corpora.sources import (
    HELD_OUT_PHOTOGRAPHS,
    PHOTOGRAPH_FILES,
    Crops,
    CropsAtSizes,
    JoinedBatches,
    PictureFiles,
    photographs,
    picture_files,
)
from chameleon_lab.pictures import open_picture


@pytest.fixture
def folder(tmp_path):
    """Three good pictures in different places, and everything a folder collects."""
    rng = np.random.default_rng(0)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, size in (("a.png", (40, 30)), ("deep/b.JPG", (25, 60)), ("deep/er/c.webp", (64, 64))):
        noise = rng.integers(0, 256, (*size, 3), np.uint8)
        PIL.Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "letter.png").write_text("not a picture")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "._a.png").write_bytes(b"what another system leaves")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_a_folders_pictures_are_found_in_order(folder):
    names = ["a.png", "broken.png", "deep/b.JPG", "deep/er/c.webp", "empty.jpg", "letter.png"]
    assert list(picture_files(folder)) == names


def test_bad_files_are_skipped_and_reported_once_with_their_reason(folder, caplog):
    pictures = PictureFiles(picture_files(folder))
    with caplog.at_level(logging.WARNING):
        assert [picture.size for picture in pictures] == [(30, 40), (60, 25), (64, 64)]
        assert len(list(pictures)) == 3
    assert {name: reason.split(" ")[1:4] for name, reason in pictures.skipped.items()}.keys() == {
        "broken.png",
        "empty.jpg",
        "letter.png",
    }
    assert "cannot be read" in pictures.skipped["broken.png"] and "is empty" in pictures.skipped["empty.jpg"]
    assert len([record for record in caplog.records if record.message.startswith("Skipped: ")]) == 3


def test_crops_are_a_function_of_seed_and_step_alone(folder):
    crops = Crops(PictureFiles(picture_files(folder)), 16, seed=3, batch=5)
    again = Crops(PictureFiles(picture_files(folder), cached=1), 16, seed=3, batch=5)
    third = crops(3)
    assert third.shape == (5, 3, 16, 16) and third.min() >= -1 and third.max() <= 1
    assert torch.equal(again(3), third) and not torch.equal(again(4), third)
    assert not torch.equal(Crops(crops.pictures, 16, seed=4, batch=5)(3), third)


def test_pictures_smaller_than_a_crop_are_enlarged(folder):
    assert Crops(PictureFiles({"a": folder / "a.png"}), 128, batch=2)(0).shape == (2, 3, 128, 128)


def test_large_pictures_are_kept_small(tmp_path):
    PIL.Image.new("RGB", (900, 300)).save(tmp_path / "wide.png")
    (picture,) = PictureFiles(picture_files(tmp_path), shortest=100)
    assert picture.size == (300, 100)


def test_folders_without_pictures_say_so(folder, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        picture_files(folder / "a.png")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"holds no pictures: no file there ends in \.avif"):
        picture_files(tmp_path / "bare")
    unreadable = PictureFiles({"letter": folder / "letter.png"})
    with pytest.raises(ValueError, match=r"None of the 1 pictures can be read: .*letter"):
        Crops(unreadable, 16)(0)


def test_sources_stand_beside_each_other_in_a_batch():
    both = JoinedBatches((lambda step: torch.full((2, 3), step), lambda step: torch.zeros(1, 3)))
    assert both(7).tolist() == [[7] * 3, [7] * 3, [0] * 3]


def test_the_photographs_are_there_and_can_be_read():
    files = photographs()
    assert files.keys() == PHOTOGRAPH_FILES.keys() >= set(HELD_OUT_PHOTOGRAPHS)
    for name, path in files.items():
        assert min(open_picture(path).size) > 250, name


def test_a_machine_without_the_packages_has_no_photographs(monkeypatch):
    monkeypatch.setattr("chameleon_lab.corpora.sources.find_spec", lambda name: None)
    assert photographs() == {}


def test_pictures_opened_ahead_give_the_crops_that_are_opened_in_their_turn(folder):
    """Whatever order steps come in, and with pictures that cannot be read among them."""
    ahead, alone = (Crops(PictureFiles(picture_files(folder)), 16, seed=5, batch=4) for _ in range(2))
    alone.pictures.fetch = lambda indices: None  # type: ignore[method-assign]
    for step in (0, 1, 2, 7, 3, 3, 0):
        assert torch.equal(ahead(step), alone(step))
    assert ahead.pictures.skipped == alone.pictures.skipped


def test_a_step_fetches_what_it_will_take(folder):
    crops = Crops(PictureFiles(picture_files(folder)), 16, seed=5, batch=4)
    for step in range(5):
        fetched, taken = list(crops._choices(step)), list[int]()
        rng = np.random.default_rng([5, 4, step])
        for _ in range(4):
            taken.append(int(rng.permutation(len(crops.pictures))[0]))
            _ = rng.uniform(0.3, 1.0), rng.uniform(0, 9), rng.uniform(0, 9), rng.random()
        assert fetched == taken


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": 2.0}, {"side": 0}, {"side": "x"}])
def test_impossible_crops_are_refused(folder, wrong):
    with pytest.raises(ValueError, match="must be a whole number from 1 on"):
        Crops(PictureFiles(picture_files(folder)), **{"side": 16, **wrong})


def test_crops_at_sizes_are_pieces_of_the_pictures_and_a_function_of_seed_and_step(folder):
    pictures = PictureFiles(picture_files(folder))
    crops, again = (CropsAtSizes(pictures, 16, seed=3, batch=40, shortest=(20, 25)) for _ in range(2))
    third = crops(3)
    assert third.shape == (40, 3, 16, 16) and third.min() >= -1 and third.max() <= 1
    assert torch.equal(again(3), third) and not torch.equal(again(4), third)
    assert not torch.equal(CropsAtSizes(pictures, 16, seed=4, batch=40, shortest=(20, 25))(3), third)
    levels = [np.asarray(each) for each in crops._bytes]
    assert sorted(min(each.shape[:2]) for each in levels) == [20, 20, 20, 25, 25, 25]
    pieces = {
        piece.tobytes()
        for level in levels
        for top in range(level.shape[0] - 15)
        for left in range(level.shape[1] - 15)
        for piece in [level[top : top + 16, left : left + 16]]
    }
    bytes_BHWC = ((third + 1) / 2 * 255).round().byte().movedim(1, -1).numpy()
    mirrored = [crop.tobytes() not in pieces for crop in bytes_BHWC]
    assert all(crop[:, ::-1].tobytes() in pieces for crop, mirror in zip(bytes_BHWC, mirrored, strict=True) if mirror)
    assert 8 < sum(mirrored) < 32


def test_crops_at_sizes_enlarge_what_is_too_small_and_say_when_nothing_can_be_read(folder):
    assert CropsAtSizes(PictureFiles({"a": folder / "a.png"}), 64, batch=2)(0).shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"None of the 1 pictures can be read: .*letter"):
        CropsAtSizes(PictureFiles({"letter": folder / "letter.png"}), 16)
    for side, batch in ((0, 4), (16, 0)):
        with pytest.raises(ValueError, match="must be a whole number from 1 on"):
            CropsAtSizes(PictureFiles({"a": folder / "a.png"}), side, batch=batch)
