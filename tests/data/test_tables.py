import hashlib
import json
import os
import tempfile
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerprint_jax.data import folders, tables


def write(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,0\nb,4\n", ["a", "b"]),
        ("id,label\na,0\nb,4", ["a", "b"]),
        ("image,prediction\na.png,t1\nb.PNG,t5\n", ["a.png", "b.PNG"]),
        ("a.jpg,gen_t1\nb.Jpeg,gen_t5\n", ["a.jpg", "b.Jpeg"]),
        ("\ufeffa,0\r\n\r\nb,4\r\n", ["a", "b"]),
        (' a , 0\n"b, ""c""", t5 \n', [" a ", 'b, "c"']),
    ],
)
def test_read_labels_styles(text, names, tmp_path):
    ids, labels = tables.read_labels(write(tmp_path, text), 5, "subtask2")
    assert ids == names
    assert labels.tolist() == [0, 4]
    assert labels.dtype == np.int64


@pytest.mark.parametrize("task", ["subtask1", "images"])
@pytest.mark.parametrize("label", ["t1", "gen_t2"])
def test_only_labels_of_subtask_2_are_sets(label, task, tmp_path):
    with pytest.raises(ValueError, match=rf"line 2: label '{label}' is none of 0\.\.1$"):
        tables.read_labels(write(tmp_path, f"a,1\nb,{label}\n"), 2, task)
    with pytest.raises(ValueError, match=rf"line 2: label '{label}' is none of 0\.\.1$"):
        tables.read_extra_labels(write(tmp_path, f"split,id,label\ns,b,{label}\n"), 2, task)
    style = label.rstrip("12")
    with pytest.raises(ValueError, match=f"^style='{style}': labels of {task} are not sets; use int$"):
        tables.check_style(task, style)
    tables.check_style(task, "int")
    tables.check_style("subtask2", style)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no labels in it, expected lines of id,label"),
        ("id,label\n", "no labels in it"),
        ("a,0\nb,2\n", r"line 2: label '2' is none of 0\.\.1, t1\.\.t2, gen_t1\.\.gen_t2$"),
        ("a,2\nb,0\n", "line 1: label '2' is none of"),
        ("a,\nb,0\n", "line 1: label '' is none of"),
        ("a,0\n\nb,used\n", "line 3: label 'used' is none of"),
        ("a,t0\n", "line 1: label 't0'"),
        ("a,-1\n", "line 1: label '-1'"),
        ("a,0.5\n", "line 1: label '0.5'"),
        ("a,\u0661\n", "line 1: label '\u0661'"),
        ("a,1\nb," + "9" * 5000 + "\n", "line 2: label '999"),
        ("a,1\nb,1,0\n", "line 2: 3 columns, expected id,label"),
        ("a;1\n", "line 1: 1 columns, expected id,label"),
        ("a,1\nb,1\na,1\n", "line 3: id 'a' is repeated"),
        ("a,1\n,1\n", "line 2: the id is empty"),
        ("a,1\nb\x00,1\n", "line 2: the id .* holds a control character"),
        (f"a,1\n{'b' * 5000},1\n", "line 2: an id of 5,000 characters, more than 4,096"),
    ],
)
def test_read_labels_names_file_line_and_value(text, message, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        tables.read_labels(path, 2, "subtask2")
    assert str(path) in str(error.value)


def test_read_labels_of_what_is_no_text_file(tmp_path):
    path = tmp_path / "labels.csv"
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zero.csv"):  # neither waited for nor read without end
        with pytest.raises(ValueError, match=f"{name}: a .*, expected a file"):
            tables.read_labels(tmp_path / name, 2, "subtask1")
    with pytest.raises(ValueError, match="labels.csv: cannot be read as CSV: .*No such file"):
        tables.read_labels(path, 2, "subtask1")
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match="labels.csv: cannot be read as CSV"):
        tables.read_labels(path, 2, "subtask1")


def test_extra_labels_and_their_way_back(tmp_path):
    path = tmp_path / "made" / "extra.csv"
    tables.write_extra_labels(path, "test_generated", np.array(["a,b", "c"]), np.array([4, 0]))
    assert path.read_text() == 'split,id,label\ntest_generated,"a,b",4\ntest_generated,c,0\n'
    assert tables.read_extra_labels(path, 5, "subtask2") == {"test_generated": {"a,b": 4, "c": 0}}
    path.write_text("\ufeffsplit, id,label\r\n s ,a,t1\r\n\r\nr,a,gen_t2\r\n")
    assert tables.read_extra_labels(path, 5, "subtask2") == {"s": {"a": 0}, "r": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no labels in it, expected lines of split,id,label"),
        ("split,id,label\n", "no labels in it"),
        ("s,a,0\n", "the header is 's,a,0', expected split,id,label"),
        ("id,split,label\na,s,0\n", "the header is 'id,split,label'"),
        ("split,id,label\n\ns,a\n", "line 3: 2 columns, expected split,id,label"),
        ("split,id,label\ns,a,2\n", r"line 2: label '2' is none of 0\.\.1"),
        ("split,id,label\ns,a,-1\n", "line 2: label '-1'"),
        ("split,id,label\ns,a,0\nr,a,0\ns,a,0\n", "line 4: id 'a' of split 's' is repeated"),
        ("split,id,label\ns," + "a" * 200_000 + ",0\n", "cannot be read as CSV"),
    ],
)
def test_extra_labels_name_file_line_and_value(text, message, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        tables.read_extra_labels(path, 2, "subtask1")
    assert str(path) in str(error.value)


def test_align_gives_positions():
    ids, others = np.array(["b", "c", "a"]), np.array(["a", "b", "c"])
    assert tables.align(ids, others).tolist() == [1, 2, 0]
    assert (others[tables.align(ids, others)] == ids).all()


def test_align_counts_what_differs():
    with pytest.raises(ValueError, match=r"2 ids are missing \(first: \['c', 'd'\]\) and 1 are not expected \(first: \['x'\]\)"):
        tables.align(np.array(["a", "c", "d"]), np.array(["x", "a"]))


@pytest.mark.parametrize(("ids", "others"), [("aab", "ab"), ("ab", "aab")])
def test_align_refuses_repeated_ids(ids, others):
    with pytest.raises(ValueError, match=r"1 ids are repeated \(first: \['a'\]\)"):
        tables.align(np.array(list(ids)), np.array(list(others)))


NFC, NFD = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("known", "given", "positions"),
    [
        (["a", "b"], ["b.png", "a"], [1, 0]),
        (["a", "a.jpg"], ["a.jpg", "a"], [1, 0]),  # slice_01.png and slice_01.jpg.png
        (["a", "a.jpg"], ["a.jpg.png", "a.png"], [1, 0]),
        (["a.jpg"], ["a.jpg"], [0]),
        (["a.jpg"], ["a"], [-1]),
        (["a"], ["a.png.png", "a.dcm", "A"], [-1, -1, -1]),
        (["a "], ["a"], [0]),
        (["a"], [" a "], [0]),
        (["a", "a "], ["a ", "a"], [1, 0]),
        (["a "], ["a .png"], [0]),
        ([NFD], [NFC], [0]),
        ([NFC], [f" {NFD}.JPEG"], [0]),
        ([NFC, NFD], [NFD, NFC], [1, 0]),
        (["a"], [], []),
    ],
)
def test_an_id_is_the_known_one_that_it_equals_else_without_its_extension(known, given, positions):
    assert tables.find(np.array(known), np.array(given, dtype=str)).tolist() == positions


@pytest.mark.parametrize(
    ("known", "given", "positions"),
    [(["a.jpg"], ["a"], [0]), (["a.jpg"], ["a.png"], [0]), (["a", "a.jpg"], ["a.jpg", "a"], [1, 0])],
)
def test_of_two_files_either_may_have_extensions(known, given, positions):
    assert tables.find(np.array(known), np.array(given), either=True).tolist() == positions


@pytest.mark.parametrize(
    ("known", "given", "message"),
    [
        (["a", "a "], [" a"], r"id ' a' may be any of \['a', 'a '\]"),
        ([NFC, NFD], [f"{NFC}.png"], r"id 'gr\\xf6\\xdfe.png' may be any of \['gr\\xf6\\xdfe', 'gro\\u0308\\xdfe'\]"),
        (["a"], ["a", "a.png"], "ids 'a' and 'a.png' are both that of 'a', each must occur once"),
        ([NFC], [NFC, NFD], r"ids 'gr\\xf6\\xdfe' and 'gro\\u0308\\xdfe' are both that of 'gr\\xf6\\xdfe'"),
    ],
)
def test_an_id_that_may_be_several_or_is_there_twice_is_one_line(known, given, message):
    with pytest.raises(ValueError, match=message):
        tables.find(np.array(known), np.array(given))


def test_ids_that_look_the_same_are_shown_as_they_differ():
    with pytest.raises(ValueError, match=r"missing \(first: \['a'\]\) and 1 are not expected \(first: \['\\u0430'\]\)"):
        tables.align(np.array(["a"]), np.array(["\u0430"]))  # a Latin and a Cyrillic letter


# As `pack` takes them: printable names without what spreadsheets take for a formula; blanks, extensions and forms that collide.
PIECES = st.sampled_from(
    ["a", "A", " ", ".", ".png", ".jpg", ".JPEG", ",", '"', "'", ";", "/", "t1", "0", NFC, NFD, "é", "日", "\\", "#"]
)
IDS = st.lists(PIECES, min_size=1, max_size=4).map("".join).filter(lambda text: not folders.unfit(text))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(IDS, min_size=1, max_size=6, unique=True),
    st.booleans(),
    st.sampled_from(["", "", ".png", ".jpg", ".JPEG"]),
    st.sampled_from(list(tables.STYLES)),
)
def test_what_is_written_as_a_submission_is_read_as_it_was_meant(ids, header, extension, style):
    labels = np.arange(len(ids)) % 5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.csv")
        try:
            tables.write_submission(path, np.array(ids), labels, header, extension, style)
        except ValueError as error:  # with the extension an id would be that of another image
            assert extension and str(error).startswith(f"extension={extension!r}: id") and not path.exists()
            return
        back, found = tables.read_labels(path, 5, "subtask2")
    assert found[tables.align(np.array(ids), back)].tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "a,0\nb,4\n"),
        ({"header": True}, "id,label\na,0\nb,4\n"),
        ({"extension": ".png", "style": "t"}, "a.png,t1\nb.png,t5\n"),
        ({"style": "gen_t", "header": True}, "id,label\na,gen_t1\nb,gen_t5\n"),
    ],
)
def test_submission_styles_and_their_way_back(options, text, tmp_path):
    path = tmp_path / "made" / "run.csv"
    tables.write_submission(path, np.array(["a", "b"]), np.array([0, 4]), **options)
    assert path.read_bytes() == text.encode()
    ids, labels = tables.read_labels(path, 5, "subtask2")
    assert (labels.tolist(), tables.find(np.array(["a", "b"]), ids).tolist()) == ([0, 4], [0, 1])


@pytest.mark.parametrize(
    ("ids", "labels", "options", "message"),
    [
        (["a", "b", "a"], [0, 1, 1], {}, r"1 ids are repeated \(first: \['a'\]\)"),
        (["a", "b"], [0, -1], {}, "label -1 is negative"),
        (["a", "b"], [0, 1], {"extension": "png"}, "^extension='png': use .png, .jpg or .jpeg$"),
        (["a", "b"], [0, 1], {"extension": ".dcm"}, "^extension='.dcm': use .png, .jpg or .jpeg$"),
        (["a", "a.jpg"], [0, 1], {"extension": ".jpg"}, "^extension='.jpg': ids 'a.jpg' and 'a.jpg.jpg' are both that of 'a.jpg'"),
        (["a", "b"], [0], {}, "shorter"),
    ],
)
def test_refused_submission_leaves_the_folder_as_it_was(ids, labels, options, message, tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        tables.write_submission(path, ids, labels, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["run.csv"]
    assert path.read_text() == "before"


def test_predictions_come_back_bit_by_bit(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 3000, dtype=np.uint64).astype(np.uint32)
    scores = bits.view(np.float32)
    scores = scores[np.isfinite(scores)]
    extremes = np.array([0.1, 1 / 3, -0.0, 1e-45, 3.4028235e38, 16777216, 1, 0.5], np.float32)
    scores = np.concatenate([extremes, scores[: len(scores) // 2 * 2]]).reshape(-1, 2)
    ids = np.array([f"t1/{i}" for i in range(len(scores))])
    tables.write_predictions(tmp_path / "p.csv", ids, scores, {})
    back_ids, back, _ = tables.read_predictions(tmp_path / "p.csv")
    assert back_ids == ids.tolist()
    assert back.dtype == np.float32
    assert back.tobytes() == scores.tobytes()


def test_predictions_carry_their_description(tmp_path):
    path = tmp_path / "p.csv"
    meta = {"state": 7, "config": "abc", "fingerprints": {"test_real": "f"}, "probabilities": True}
    ids = np.array(['a,b "c"', "é\nd"])
    tables.write_predictions(path, ids, np.array([[1.5], [0.25]]), meta)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "p.csv.json"]
    assert path.read_text(encoding="utf-8").startswith('id,score_0\n"a,b ""c""",1.5\n')
    back_ids, scores, back_meta = tables.read_predictions(path)
    assert back_ids == ids.tolist()
    assert scores.tolist() == [[1.5], [0.25]]
    assert back_meta == meta
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads((tmp_path / "p.csv.json").read_text()) == meta | {"sha256": digest}


def test_empty_table_keeps_its_columns(tmp_path):
    tables.write_predictions(tmp_path / "p.csv", np.array([], str), np.zeros((0, 5)), {})
    ids, scores, _ = tables.read_predictions(tmp_path / "p.csv")
    assert ids == [] and scores.shape == (0, 5)


def test_a_failed_write_leaves_no_description_and_no_temporary_file(tmp_path):
    path = tmp_path / "p.csv"
    tables.write_predictions(path, np.array(["a"]), np.array([[1.0]]), {"state": 1})
    with pytest.raises(ValueError, match="longer"):
        tables.write_predictions(path, np.array(["a"]), np.array([[1.0], [2.0]]), {"state": 2})
    with pytest.raises(ValueError, match="p.csv: not a table of predictions"):
        tables.read_predictions(path)
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize("text", ["", "id,score_0\na\n", "id,score_0\na,high\n", "id,score_0\na,1,2\nb,1\n"])
def test_damaged_predictions_are_named(text, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="p.csv: not a table of predictions"):
        tables.read_predictions(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sha256": "0"}'])
def test_damaged_description_is_named(text, tmp_path):
    tables.write_predictions(tmp_path / "p.csv", np.array(["a"]), np.array([[1.0]]), {})
    (tmp_path / "p.csv.json").write_text(text)
    with pytest.raises(ValueError, match="p.csv: not a table of predictions"):
        tables.read_predictions(tmp_path / "p.csv")


def test_a_changed_score_is_noticed(tmp_path):
    tables.write_predictions(tmp_path / "p.csv", np.array(["a"]), np.array([[0.125]]), {})
    (tmp_path / "p.csv").write_text("id,score_0\na,0.625\n")
    with pytest.raises(ValueError, match="p.csv: not a table of predictions .its digest differs"):
        tables.read_predictions(tmp_path / "p.csv")


def test_a_table_that_takes_the_place_of_one_being_written_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    write_text = tables.files.write_text

    def late(*arguments):
        path.write_text("id,score_0\na,0.625\n")
        write_text(*arguments)

    monkeypatch.setattr(tables.files, "write_text", late)
    tables.write_predictions(path, np.array(["a"]), np.array([[0.125]]), {})
    with pytest.raises(ValueError, match="p.csv: not a table of predictions .its digest differs"):
        tables.read_predictions(path)


def test_arrays_that_lie_over_one_another_are_not_read(tmp_path, caplog):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(9))
    assert tables.read_arrays(path)["x"].tolist() == [0] * 9
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("x.npy", bytes(100_000))
        packed.filelist *= 9  # nine names of the same bytes
    assert tables.read_arrays(path) is None and "its parts overlap" in caplog.text


def _labels(path):
    return tables.read_labels(path, 2, "subtask1")


def _packed(path):
    return list(folders.read_table(path, {"file": str}))


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (_labels, "a\n" * 2**20),
        (_labels, ",\u0100" * 2**20),
        (_labels, ',"\n"' * 2**19),
        (tables.read_predictions, "\n" * 2**21),
        (tables.read_predictions, "id\n" + "a\n" * 2**20),
        (tables.read_predictions, "id,score_0\n" + "a,1\n" * 2**19),
        (tables.read_predictions, "id,score_0\n" + "a\n" * 2**20),
        (_packed, ",\n" * 2**20),
        (_packed, "file,reason\n" + "a\n" * 2**20),
    ],
)
def test_a_table_of_short_lines_or_of_one_long_one_is_not_taken_in_whole(read, text, tmp_path):
    path = write(tmp_path, text)
    path.with_name(path.name + ".json").write_text(json.dumps({"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    tracemalloc.start()
    if ",1" in text:
        assert len(read(path)[0]) == 2**19
    else:
        with pytest.raises(ValueError, match="line 1: 1 columns|not a table of|of 1,048,576 characters|not the table|no column"):
            read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * path.stat().st_size  # lists of all cells would have 30 to 100 times as much


def test_one_long_id_takes_the_memory_of_one(tmp_path):
    known = np.array([f"image{i}" for i in range(20_000)])
    path = write(tmp_path, "".join(f"{name},1\n" for name in [*known, "x" * 4096]))
    tracemalloc.start()
    ids, _ = tables.read_labels(path, 2, "subtask1")
    with pytest.raises(ValueError, match="0 ids are missing .* and 1 are not expected"):
        tables.align(known, ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * path.stat().st_size  # an array of these ids would have 1,200 times as much
