"""Readers: what lies in a person's files becomes documents, and what does not is told with its reason."""

import gzip
import io
import json
import os
import sys
import tarfile
import zipfile
from collections import Counter

import numpy as np
import PIL.Image
import pytest
from support import RECORDS

from chameleon_lab.corpora import archives, readers, shards
from chameleon_lab.corpora.folders import picture_listing
from chameleon_lab.corpora.readers import (
    READERS,
    PictureFolder,
    Skipped,
    captioned_pictures,
    half_picture_first,
    jsonl,
    mmc4,
    obelics,
    plain_text,
    source_code,
)
from chameleon_lab.corpora.sources import picture_files
from chameleon_lab.documents import Document, EndTurn, Image, Text
from chameleon_lab.pictures import open_picture


def shade(grey: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (8, 8), (grey, grey, grey))


def texts(documents) -> list:
    """Documents as lists of texts and shades of grey, and the names of what was skipped."""
    return [
        each.name
        if isinstance(each, Skipped)
        else [part.text if isinstance(part, Text) else np.asarray(part.picture)[0, 0, 0].item() for part in each]
        for each in documents
    ]


def reasons(documents) -> dict[str, str]:
    return dict(each for each in documents if isinstance(each, Skipped))


@pytest.fixture
def pictures(tmp_path):
    """A folder of three grey pictures, one of them deeper."""
    (tmp_path / "deep").mkdir()
    for name, grey in (("a.png", 10), ("b.png", 20), ("deep/c.png", 30)):
        shade(grey).save(tmp_path / name)
    return tmp_path


def lines(path, *entries) -> str:
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries))
    return str(path)


# Pictures with captions


def test_a_captioned_folder_gives_pairs_and_tells_of_what_lacks_its_other_half(pictures):
    (pictures / "a.txt").write_text("\ufeffa grey square\n")
    (pictures / "deep" / "c.txt").write_text("a lighter one")
    (pictures / "d.png").write_bytes(b"no picture")
    (pictures / "d.txt").write_text("its caption")
    shade(1).save(pictures / "e.png")
    (pictures / "e.txt").write_bytes(b"\xff\xfe")
    shade(1).save(pictures / "f.png")
    (pictures / "f.txt").write_text("  \n")
    (pictures / "deep" / "lonely.txt").write_text("of a picture long gone")
    documents = list(captioned_pictures(pictures))
    assert [entry for entry in texts(documents) if isinstance(entry, list)] == [
        ["a grey square", 10],
        ["a lighter one", 30],
    ]
    why = reasons(documents)
    assert set(why) == {"b.png", "d.png", "e.png", "f.png", "deep/lonely.txt"}
    assert why["b.png"] == "a picture without a caption: write one to b.txt beside it"
    assert why["deep/lonely.txt"] == "a caption without a picture"
    assert "not a picture" in why["d.png"] and "no UTF-8" in why["e.png"] and "empty" in why["f.png"]


def test_captions_may_stand_in_one_file(pictures):
    entries = [
        {"file_name": "a.png", "text": "one"},
        {"file_name": "deep/c.png", "caption": "three"},
        {"file_name": "gone.png", "text": "four"},
        {"file_name": "b.png", "text": None},
        "not json",
    ]
    lines(pictures / "metadata.jsonl", *entries)
    documents = list(captioned_pictures(pictures))
    assert [entry for entry in texts(documents) if isinstance(entry, list)] == [["one", 10], ["three", 30]]
    assert reasons(documents)["gone.png"] == "a caption without a picture"
    assert set(reasons(documents)) == {"metadata.jsonl, line 4", "metadata.jsonl, line 5", "b.png", "gone.png"}


@pytest.mark.parametrize("ending", ["a.txt", "a.png.txt", "a.caption", "a.png.caption"])
def test_a_caption_is_found_under_each_name_that_programs_give_it(pictures, ending):
    (pictures / ending).write_text("a grey square")
    assert ["a grey square", 10] in texts(captioned_pictures(pictures))
    assert not any("without a picture" in reason for reason in reasons(captioned_pictures(pictures)).values())


@pytest.mark.parametrize(
    ("picture", "caption"),
    [("cat.png", "cat.TXT"), ("é.png", "e\u0301.txt"), ("e\u0301.png", "é.png.Caption"), ("a.b.png", "a.b.txt")],
)
def test_a_caption_is_found_however_a_system_spells_its_name(tmp_path, picture, caption):
    shade(10).save(tmp_path / picture)
    (tmp_path / caption).write_text("a grey square")
    assert texts(captioned_pictures(tmp_path)) == [["a grey square", 10]]


@pytest.mark.parametrize("name", ["./deep/c.png", "deep//c.png", "deep\\c.png", ".\\deep\\c.png"])
@pytest.mark.parametrize("key", ["file_name", "image"])
def test_metadata_may_spell_a_path_in_any_way(pictures, name, key):
    lines(pictures / "metadata.jsonl", {key: name, "text": "three"})
    assert ["three", 30] in texts(captioned_pictures(pictures))


def test_metadata_may_be_an_array(pictures):
    (pictures / "metadata.json").write_text(json.dumps([{"file_name": "a.png", "text": "one"}], indent=1))
    assert ["one", 10] in texts(captioned_pictures(pictures))


# What lies in a folder besides: one rule for all readers


@pytest.fixture
def visited(tmp_path):
    """A folder with a good entry for each reader, and links, hidden folders, pipes and devices beside it."""
    outside, folder = tmp_path / "outside", tmp_path / "corpus"
    for place in (outside, folder / "deep", folder / ".ipynb_checkpoints", folder / ".thumbnails" / "large"):
        place.mkdir(parents=True)
        shade(40).save(place / "x.png")
        (place / "x.txt").write_text(f"the text of {place.name}")
    (folder / "away").symlink_to(outside)
    (folder / "again").symlink_to(folder / "deep")
    (folder / "round").symlink_to(folder)
    shade(50).save(folder / "good.png")
    (folder / "good.txt").write_text("good")
    for name in ("key.txt", "key.png"):
        (folder / name).symlink_to(outside / f"x{name[3:]}")
    os.mkfifo(folder / "pipe.txt")
    shade(60).save(folder / "piped.png")
    os.mkfifo(folder / "piped.txt")
    return folder


@pytest.mark.parametrize("kind", ["captions", "text"])
def test_links_out_hidden_folders_and_pipes_are_left_alone_and_said(visited, kind):
    documents = list(READERS[kind](visited, PictureFolder(visited)))
    words = sorted(document.text for document in documents if isinstance(document, Document))
    assert words == ["good", "the text of deep"]
    why = reasons(documents)
    assert next(name for name, reason in why.items() if reason == "it is a link out of the folder").startswith(
        "away/ and "
    )
    assert "it is a link to a folder, which is read where it lies" in why.values()
    assert "it is a pipe, a socket or a device, not a file" in why.values()


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.json", "addresses.json"])
def test_no_file_of_the_labs_own_names_is_a_link_out(visited, name):
    secret = [{"file_name": "piped.png", "text": "secret"}] if "meta" in name else {"http://a.b": "good.png"}
    outside = visited.parent / "outside" / name
    outside.write_text(json.dumps(secret))
    (visited / name).symlink_to(outside)
    if name == "addresses.json":
        with pytest.raises(ValueError, match="is a link out of the folder"):
            PictureFolder(visited)
        return
    assert "secret" not in str(list(captioned_pictures(visited)))


@pytest.mark.parametrize("kind", READERS)
def test_links_in_a_circle_and_to_nothing_end_no_corpus(tmp_path, kind):
    """What lies there is read; `resolve` raises RuntimeError for a circle, or nothing, as Python has it."""
    for name, target in {
        "me.png": "me.png",
        "a.txt": "b.txt",
        "b.txt": "a.txt",
        "gone.png": "gone",
        "up": "up",
    }.items():
        (tmp_path / name).symlink_to(target)
    shade(10).save(tmp_path / "good.png")
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "good.py").write_text("good")
    lines(tmp_path / "good.jsonl", *({"image": name, "caption": "c"} for name in ("me.png", "up/x.png", "good.png")))
    reader = READERS[kind](
        tmp_path / "good.jsonl" if kind in ("jsonl", "obelics", "mmc4") else tmp_path, PictureFolder(tmp_path)
    )
    read = list(reader)
    assert sum(isinstance(each, Document) for each in read) == (kind in ("captions", "jsonl", "text", "code"))
    if kind in ("captions", "text", "code"):
        assert "it is a link to nothing" in reasons(read).values()


def test_jsonl_finds_no_picture_behind_a_link_or_a_pipe(visited):
    names = ("good.png", "key.png", "away/x.png", "pipe.txt", "../outside/x.png", ".thumbnails/large/x.png")
    lines(visited / "made.jsonl", *({"image": name, "caption": "c"} for name in names))
    documents = list(jsonl(visited / "made.jsonl"))
    assert sum(isinstance(each, Document) for each in documents) == 2  # the first and the last, which are named
    assert {name.split()[-1] for name in reasons(documents)} == {"2", "3", "4", "5"}


def test_pictures_of_every_ending_and_of_none_are_taken_and_the_rest_is_counted(tmp_path, caplog):
    kinds = {
        "avif": "AVIF",
        "jfif": "JPEG",
        "jpe": "JPEG",
        "jp2": "JPEG2000",
        "ppm": "PPM",
        "webp": "WEBP",
        "tif": "TIFF",
    }
    for ending, kind in kinds.items():
        shade(9).save(tmp_path / f"a.{ending}", kind)
    for kind in set(kinds.values()) | {"PNG", "GIF", "BMP"}:
        shade(9).save(tmp_path / f"bare{kind}", kind)
    (tmp_path / "README").write_text("no picture")
    (tmp_path / "raw.heic").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    shade(9).save(tmp_path / ".cache" / "b.png")
    with caplog.at_level("INFO"):
        files = picture_files(tmp_path)
    assert {*files} == {
        *(f"a.{ending}" for ending in kinds),
        *(f"bare{kind}" for kind in {*kinds.values(), "PNG", "GIF", "BMP"}),
    }
    assert all(open_picture(path).size == (8, 8) for path in files.values())
    for words in ("16 taken", "1: no picture ends in .heic", "1: it does not begin as a picture", "1: it is hidden"):
        assert words in caplog.text


# Entries of wrong types

WRONG = (None, True, 3, 1.5, "", [], {}, [None], {"a": 1}, 10**30, [[10**30]], [[1.9]], "\ud800", float("nan"))


@pytest.mark.parametrize("name", RECORDS)
def test_an_entry_of_wrong_types_is_skipped_and_never_ends_a_corpus(pictures, name):
    """Each value of each key of each record, as each wrong thing: the good entries around it are read."""
    good = RECORDS[name]
    entries = [json.dumps(record | {key: wrong}) for record in good for key in record for wrong in WRONG]
    entries += [json.dumps(wrong) for wrong in WRONG] + ["[" * 5000, '{"text": ' * 3000, "NaN", "1" * 5000, "{} {}"]
    if name == "jsonl":
        code = {"image": written_png(), "codes": [[0, 1], [2, 3]], "learn": True}
        entries += [json.dumps([{**code, key: wrong}]) for key in code for wrong in (*WRONG, "no", [[1, 2], [3]])]
        entries += [json.dumps([{"text": wrong}, {"end_turn": True, "learn": wrong}]) for wrong in WRONG]
    last = json.dumps(good[0])
    lines(pictures / "made.jsonl", last, *entries, last)
    documents = list(READERS[name](pictures / "made.jsonl", PictureFolder(pictures)))
    assert isinstance(documents[0], Document) and documents[0] == documents[-1]
    for document in documents:
        for part in document if isinstance(document, Document) else ():
            assert isinstance(part.learn, bool)
            assert not isinstance(part, Text) or isinstance(part.text, str)
            assert not isinstance(part, Image) or part.codes is None or part.codes.dtype == int


def written_png() -> str:
    return json.loads(Document.of(shade(5)).to_json())[0]["image"]


def test_an_array_of_records_is_read_as_lines_are(pictures):
    records = [
        {"file_name": "a.png", "text": "one"},
        {"images": ["a.png", "b.png"], "text": "see <image>, then <image>"},
    ]
    records += [{"images": ["b.png"], "text": "last"}, {"images": ["a.png"], "text": "<image> <image>"}, {"text": None}]
    (pictures / "made.json").write_text(json.dumps(records))
    (pictures / "made.jsonl").write_text(json.dumps(records, indent=2))
    for path in ("made.json", "made.jsonl"):
        documents = list(jsonl(pictures / path))
        assert texts(documents) == [
            ["one", 10],
            ["see", 10, ", then", 20],
            ["last", 20],
            f"{path}, entry 4",
            f"{path}, entry 5",
        ]


def test_a_line_without_an_end_is_passed_over_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LARGEST_DOCUMENT", 1000)
    path = tmp_path / "made.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' + b"x" * 5_000_000 + b'\n{"text": "b"}\n'))
    assert texts(jsonl(path)) == [["a"], "made.jsonl.gz, line 2", ["b"]]
    monkeypatch.setattr(readers, "LARGEST_RUN", 2_000_000)
    with pytest.raises(ValueError, match=r"made\.jsonl\.gz holds a line of more than 2,000,000 bytes"):
        list(jsonl(path))


# JSON Lines


def test_jsonl_reads_the_labs_documents_pairs_and_texts(pictures):
    whole = Document.of("see", Image(shade(7), np.arange(4).reshape(2, 2)), EndTurn(learn=False))
    path = lines(
        pictures / "made.jsonl",
        whole.to_json(),
        {"image": "deep/c.png", "caption": " a square "},
        "",
        {"text": "only text"},
    )
    first, *others = jsonl(path)
    assert first == whole
    assert texts(others) == [["a square", 30], ["only text"]]


def test_a_bad_line_is_skipped_and_the_others_are_read(pictures):
    path = lines(
        pictures / "made.jsonl",
        {"text": "before"},
        "{",
        {"image": "a.png"},
        {"image": "a.png", "caption": ""},
        {"caption": "alone"},
        {"image": "gone.png", "caption": "x"},
        {"image": "../secret.png", "caption": "x"},
        "17",
        {"title": "x"},
        [{"image": "bm90IGEgcGljdHVyZQ=="}],
        {"text": "after"},
    )
    shade(0).save(pictures.parent / "secret.png")
    documents = list(jsonl(path))
    assert texts(documents) == [["before"], *(f"made.jsonl, line {number}" for number in range(2, 11)), ["after"]]
    why = [reason for _, reason in sorted(reasons(documents).items(), key=lambda each: int(each[0].split()[-1]))]
    expected = (
        ("it is not JSON", "an image without a caption", "an image without a caption", "a caption without an image")
        + ("There is no picture at", "lies outside", "expected a JSON object, got int", "neither image and caption nor")
        + ("Segment 0 of the document cannot be read",)
    )
    assert all(begin in reason for begin, reason in zip(expected, why, strict=True))


@pytest.mark.parametrize("packed", ["gz", "zip"])
def test_packed_files_are_read_as_they_are_and_damaged_ones_are_an_error(tmp_path, packed):
    text = "".join(json.dumps({"text": f"number {index}"}) + "\n" for index in range(2000))
    path = tmp_path / f"made.jsonl.{packed}"
    if packed == "gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("made.jsonl", text)
    assert texts(jsonl(path)) == [[f"number {index}"] for index in range(2000)]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"made\.jsonl\.{packed} is damaged .*Get it anew"):
        list(jsonl(path))


# Interleaved documents


def test_obelics_documents_keep_the_order_of_texts_and_images(pictures):
    (pictures / "addresses.json").write_text(json.dumps({"https://there/x?y": "deep/c.png"}))
    path = lines(
        pictures / "o.jsonl",
        {"images": ["a.png", None, "https://there/x?y"], "texts": [None, "between", None], "metadata": "[]"},
        {"images": [None, "https://gone/z.png", None], "texts": ["before", None, "after"]},
        {"images": ["a.png", None], "texts": ["both", None]},
        {"images": ["a.png"], "texts": []},
        {"texts": ["x"]},
        {"images": ["gone.png"], "texts": [None]},
    )
    documents = list(obelics(path, PictureFolder(pictures)))
    assert texts(documents) == [
        [10, "between", 30],
        "o.jsonl, line 2, place 1",
        ["before", "after"],
        *("o.jsonl, line 3", "o.jsonl, line 4", "o.jsonl, line 5", "o.jsonl, line 6, place 0", "o.jsonl, line 6"),
    ]
    assert "is not among the addresses" in reasons(documents)["o.jsonl, line 2, place 1"]


def test_mmc4_images_stand_before_the_sentence_they_match(pictures):
    path = lines(
        pictures / "m.jsonl",
        {
            "text_list": ["one.", "two.", "three."],
            "image_info": [
                {"image_name": "b.png", "matched_text_index": 2, "raw_url": "https://there/b"},
                {"image_name": "a.png", "matched_text_index": 0},
                {"image_name": "deep/c.png", "matched_text_index": 2},
                {"image_name": "gone.png", "matched_text_index": 1},
                {"image_name": "a.png", "matched_text_index": 3},
                {"matched_text_index": 1},
                None,
            ],
        },
        {"text_list": ["no", "pictures"], "image_info": []},
        {"text_list": "x"},
    )
    documents = list(mmc4(path, PictureFolder(pictures)))
    assert [entry for entry in texts(documents) if isinstance(entry, list)] == [
        [10, "one.", "two.", 20, 30, "three."],
        ["no pictures"],
    ]
    assert set(reasons(documents)) == {
        *(f"m.jsonl, line 1, image {number}" for number in (4, 5, 6)),
        "m.jsonl, line 1, place 2",
        "m.jsonl, line 3",
    }


def test_addresses_that_are_no_table_are_an_error(pictures):
    (pictures / "addresses.json").write_text("[]")
    with pytest.raises(ValueError, match=r"addresses\.json is no JSON object of addresses and paths"):
        PictureFolder(pictures)
    with pytest.raises(ValueError, match="is no folder: give one that holds the documents' pictures"):
        PictureFolder(pictures / "a.png")


# Text


def test_text_files_are_documents_each_and_hidden_ones_are_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, text in (
        ("a.txt", "one\r\n two "),
        ("b/c.md", "three"),
        (".git/d.txt", "x"),
        ("e.py", "x"),
        ("f.txt", ""),
    ):
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "g.txt").write_bytes(b"\x80")
    documents = list(plain_text(tmp_path))
    assert texts(documents) == [["one\r\n two "], ["three"], "f.txt", "g.txt"]
    assert reasons(documents) == {
        "f.txt": "it is empty",
        "g.txt": f"{tmp_path / 'g.txt'} is no UTF-8 text (invalid start byte at byte 0).",
    }
    assert texts(plain_text(tmp_path / "e.py")) == [["x"]]


def test_source_code_keeps_its_white_space(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n\treturn 1\n")
    (tmp_path / "b.bin").write_bytes(b"\0")
    assert texts(source_code(tmp_path)) == [["def f():\n\treturn 1\n"]]


@pytest.mark.parametrize("name", READERS)
def test_a_path_where_nothing_can_be_read_is_an_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "gone", tmp_path / "folder"):
        with pytest.raises(ValueError, match=r"(?i)gone|folder"):
            list(READERS[name](path, PictureFolder(tmp_path)))


# Pairs


def pairs(count: int, picture) -> list[Document]:
    return [Document.of(f"caption {index}", picture) for index in range(count)]


def first_halves(documents) -> list[bool]:
    return [isinstance(document.segments[0], Image) for document in documents]


@pytest.mark.parametrize("count", [1, 2, 7, 400])
def test_half_of_the_pairs_come_picture_first_to_within_one(picture, count):
    reordered = [each for each in half_picture_first(pairs(count, picture)) if isinstance(each, Document)]
    assert count // 2 <= sum(first_halves(reordered)) <= (count + 1) // 2
    assert [document.text for document in reordered] == [f"caption {index}" for index in range(count)]
    assert all(len(document) == 2 for document in reordered)


def test_the_order_of_a_pair_is_decided_by_seed_and_place_and_not_by_how_it_came(picture):
    sources = pairs(400, picture)
    turned = [Document(tuple(reversed(document.segments))) for document in sources]
    first = first_halves(half_picture_first(sources))
    assert first_halves(half_picture_first(turned)) == first == first_halves(half_picture_first(sources))
    other = first_halves(half_picture_first(sources, seed=1))
    assert 120 < sum(one != two for one, two in zip(first, other, strict=True)) < 280
    assert 60 < sum(first[::2]) < 140  # in no step with files that alternate


def test_only_pairs_are_turned(picture):
    others = [
        Document.of(picture, "a", picture),
        Document.of("a", "b"),
        Document.of(picture, picture),
        Document.of("what is this?", EndTurn()),
        Skipped("x", "y"),
        Document.of("a"),
    ]
    assert list(half_picture_first(others)) == others


def test_a_reader_written_in_a_cell_is_as_good_as_any(mixed, tmp_path):
    def poems(path):
        for number, verse in enumerate(path.read_text().split("\n\n")):
            yield Document.of(verse) if verse else Skipped(f"verse {number}", "nothing stands there")

    (tmp_path / "poems").write_text("roses are red\n\n\n\nviolets are blue")
    corpus = shards.write_shards(tmp_path / "made", poems(tmp_path / "poems"), mixed)
    assert [mixed.decode(document.tokens).text for document in corpus] == ["roses are red", "violets are blue"]
    assert corpus.skipped == (Skipped("verse 1", "nothing stands there"),)


def test_folder_to_shards_keeps_captions_and_turns_half(pictures, mixed, tmp_path):
    for name in ("a", "b", "deep/c"):
        (pictures / f"{name}.txt").write_text(f"caption of {name}")
    corpus = shards.write_shards(tmp_path / "made", half_picture_first(captioned_pictures(pictures)), mixed)
    begins = Counter(int(document.tokens[1]) == mixed.vocabulary.begin_image for document in corpus)
    assert sorted(begins.values()) == [1, 2] and corpus.card["kinds"] == {"pair": 3}


# Conversations, alternatives, and what lies in one file with its words


def turns(document) -> list:
    """Each turn's parts, and whether it is learned."""
    return [
        (role, [part.text if isinstance(part, Text) else int(np.asarray(part.picture)[0, 0, 0]) for part in turn])
        for role, turn in document.turns
    ]


PICTURE_PART = {"type": "image", "path": "a.png"}
TALK = [("user", [10, "what is it?"]), ("model", ["grey"]), ("user", ["and now?"]), ("model", [20])]


@pytest.mark.parametrize(
    "entry",
    [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "what is it?"}],
                },
                {"role": "assistant", "content": "grey"},
                {"role": "user", "content": "and now?"},
                {"role": "assistant", "content": [{"type": "image", "image": "b.png"}]},
            ]
        },
        {
            "image": ["a.png", "b.png"],
            "conversations": [
                {"from": "human", "value": "<image>\nwhat is it?"},
                {"from": "gpt", "value": "grey"},
                {"from": "human", "value": "and now?"},
                {"from": "gpt", "value": "<image>"},
            ],
        },
    ],
    ids=["messages", "llava"],
)
def test_conversations_are_read_and_only_the_model_is_learned_from(pictures, entry):
    (document,) = jsonl(lines(pictures / "talk.jsonl", entry))
    assert isinstance(document, Document)
    assert turns(document) == TALK
    learned = [[part.learn for part in turn] for _, turn in document.turns]
    assert [all(each) for each in learned] == [False, True, False, True]
    assert [part.learn for part in document if isinstance(part, EndTurn)] == [False, True, False, True]


def test_segments_name_their_pictures_by_path(pictures):
    entry = [
        {"text": "one", "learn": False},
        {"image": "deep/c.png"},
        {"end_turn": True},
        {"image": "a.png", "learn": False},
    ]
    (document,) = jsonl(lines(pictures / "segments.jsonl", entry))
    assert isinstance(document, Document)
    assert [type(part) for part in document] == [Text, Image, EndTurn, Image]
    assert [int(np.asarray(each)[0, 0, 0]) for each in document.pictures] == [30, 10]
    assert [part.learn for part in document] == [False, True, True, False]
    whole = Document.of("words", shade(40))
    assert list(jsonl(lines(pictures / "whole.jsonl", whole.to_json()))) == [whole]


def test_several_captions_and_alternatives_are_a_pair_each(pictures):
    entries = [{"image": "a.png", "captions": ["x", "y", " "]}, {"image": ["a.png", "b.png"], "caption": "z"}]
    assert texts(jsonl(lines(pictures / "many.jsonl", *entries))) == [["x", 10], ["y", 10], ["z", 10], ["z", 20]]
    lines(pictures / "metadata.jsonl", {"file_name": "a.png", "captions": ["x", "y"]})
    assert texts(captioned_pictures(pictures))[:2] == [["x", 10], ["y", 10]]


@pytest.mark.parametrize(
    "entry",
    [
        {"messages": "hello"},
        {"messages": []},
        {"messages": [{"role": "system", "content": "be kind"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "nowhere.png"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "file:///etc/hostname"}]}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"conversations": [{"from": "human", "value": "<image>"}]},
        {"image": "a.png", "conversations": [{"from": "human", "value": "no picture here"}]},
        {"image": "a.png", "captions": [1]},
        {"image": "a.png", "captions": []},
        {"image": "a.png", "captions": ["", " "]},
        {"file_name": ["a.png"], "text": ""},
        [{"image": "../outside.png"}],
        [{"image": 7}],
    ],
    ids=str,
)
def test_a_fault_in_a_conversation_skips_it_alone(pictures, entry):
    read = list(jsonl(lines(pictures / "faults.jsonl", entry, {"text": "good"})))
    assert [type(each) for each in read] == [Skipped, Document]


def png(grey: int) -> bytes:
    written = io.BytesIO()
    shade(grey).save(written, "PNG")
    return written.getvalue()


def packed(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def test_a_tar_gives_its_samples_and_skips_faults(tmp_path):
    members = {"0.png": png(10), "0.txt": b"ten", "1.json": b'{"captions": ["x", "y"]}', "1.png": png(20)}
    members |= {
        "2.png": b"broken",
        "2.txt": b"two",
        "3.txt": b"alone",
        "4.json": b"{",
        "a/5.png": png(30),
        "a/5.txt": b"z",
    }
    path = packed(tmp_path / "shard.tar", members)
    assert texts(archives.webdataset(path, open_picture)) == [
        *(["ten", 10], ["x", 20], ["y", 20]),
        *("shard.tar, 2", "shard.tar, 3", "shard.tar, 4.json", ["z", 30]),
    ]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="damaged"):
        list(archives.webdataset(path, open_picture))
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_header_of_gigabytes_in_a_tar_is_refused_before_it_is_read(tmp_path, kind, ending):
    """Python reads such a one into memory, and gigabytes of zeros are packed into two megabytes."""
    header = tarfile.TarInfo("x")
    header.size, header.type = 2**31, kind
    content = header.tobuf(tarfile.GNU_FORMAT)
    first = packed(tmp_path / "first.tar", {"0.png": png(10), "0.txt": b"ten"}).read_bytes()[: 4 * 512]
    path = tmp_path / f"shard.{ending}"
    path.write_bytes(gzip.compress(first + content) if ending == "tar.gz" else first + content)
    with pytest.raises(ValueError, match=r"shard.* is damaged: a header has 2,147,483,648 bytes"):
        list(archives.webdataset(path, open_picture))


def test_rows_of_any_shape_are_pairs_or_say_what_they_lack():
    find = {"a.png": shade(10)}.__getitem__
    shapes = [
        {"image": png(10), "text": "x"},
        {"image": {"bytes": png(10), "path": None}, "caption": "x"},
        {"image": {"bytes": None, "path": "a.png"}, "captions": ["x"]},
        {"images": [png(10)], "txt": " x "},
    ]
    assert [texts(archives.row_documents(row, find)) for row in shapes] == [[["x", 10]]] * 4
    for row in ({"text": "x"}, {"image": png(10)}, {"image": png(10), "text": ""}, {"image": 3, "text": "x"}, {}):
        with pytest.raises(ValueError, match=r"it has no|its picture"):
            list(archives.row_documents(row, find))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for read in (archives.parquet, archives.dataset_on_disk):
        with pytest.raises(ValueError, match="pip install pyarrow"):
            read(tmp_path, open_picture)


def test_parquet_and_datasets_on_disk_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": png(grey), "path": None}, "text": f"{grey}"} for grey in (10, 20)]
    rows.append({"image": {"bytes": b"broken", "path": None}, "text": "bad"})
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "train").mkdir()
    with (
        pa.OSFile(str(tmp_path / "train" / "data-00000.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    for read, name in ((archives.parquet, "rows.parquet"), (archives.dataset_on_disk, "data-00000.arrow")):
        assert texts(read(tmp_path, open_picture)) == [["10", 10], ["20", 20], f"{name}, row 3"]
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="damaged"):
        list(archives.parquet(tmp_path, open_picture))


def test_the_rows_of_obelics_are_documents_and_its_pictures_are_called_by_address(tmp_path):
    row = {"images": [None, "https://x/a.png", None, "gone"], "texts": ["one", None, "two", None], "metadata": "[]"}
    pictures = {"https://x/a.png": PIL.Image.new("RGB", (4, 4), (30, 30, 30))}

    def find(name: str) -> PIL.Image.Image:
        if name not in pictures:
            raise ValueError(f"{name} is not there")
        return pictures[name]

    lost, document = archives._skipping("row 1", row, find)
    assert isinstance(document, Document) and isinstance(lost, Skipped) and lost.name == "row 1, place 3"
    assert [type(part).__name__ for part in document] == ["Text", "Image", "Text"] and document.text == "one two"
    (skipped,) = archives._skipping("row 2", row | {"texts": ["one"]}, find)
    assert isinstance(skipped, Skipped) and "of one length" in skipped.reason
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist([row, row]), tmp_path / "obelics.parquet")
    read = list(archives.parquet(tmp_path / "obelics.parquet", find))
    assert len(read) == 4 and archives.expected_entries("parquet", tmp_path) == 2
    (tmp_path / "obelics.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="damaged"):
        archives.expected_entries("parquet", tmp_path)


def test_how_many_entries_to_expect_is_known_beforehand_or_not_said(pictures, tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "a"}\n' * 3)
    assert archives.expected_entries("jsonl", tmp_path / "lines.jsonl") == 3
    assert archives.expected_entries("captions", pictures) == len(picture_listing(pictures).files)
    assert archives.expected_entries("text", tmp_path) is None
    os.mkfifo(tmp_path / "pipe.jsonl")  # nobody writes into it: to open it would never end
    assert archives.expected_entries("jsonl", tmp_path / "pipe.jsonl") is None


def test_a_few_kilobytes_of_parquet_never_become_gigabytes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    long, rows = b"x" * 2**22, 300
    columns = {"image": [png(10)] * rows, "text": ["a"] * rows, "other": pa.array([long] * rows)}
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet", compression="zstd")
    columns["text"] = pa.array([long.decode()] * rows).dictionary_encode()
    parquet.write_table(pa.table(columns), tmp_path / "words.parquet", compression="zstd")
    for name in ("rows", "words"):
        before = pa.total_allocated_bytes()
        for document in archives.parquet(tmp_path / f"{name}.parquet", open_picture):
            assert isinstance(document, Document) and pa.total_allocated_bytes() - before < 2**28
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(ValueError, match=r"damaged.parquet is damaged"):
        list(archives.parquet(tmp_path / "damaged.parquet", open_picture))
