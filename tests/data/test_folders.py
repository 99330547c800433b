import os

import pytest

from fingerprint_jax.data import folders


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def whole(root, split="train"):
    return folders.Folder("x", root, split, 3, "t1/")


def test_layout_of_both_subtasks(tmp_path):
    train, test = tmp_path / "train", tmp_path / "test"
    make(train, "generated/a", "real_used/a", "real_not_used/a")
    make(test, "generated/a", "real_unknown/a")
    got = [(f.path.relative_to(tmp_path).as_posix(), f.split, f.label, f.prefix) for f in folders.layout("subtask1", train, test)]
    assert got == [
        ("train/generated", "train_generated", 1, ""),
        ("train/real_used", "train_real", 1, "real_used/"),
        ("train/real_not_used", "train_real", 0, "real_not_used/"),
        ("test/generated", "test_generated", 1, ""),
        ("test/real_unknown", "test_real", -1, ""),
    ]
    for k in range(1, 6):
        make(train, f"real/t{k}/a", f"generated/{'gen_' if k % 2 else ''}t{k}/a")
    got = folders.layout("subtask2", train)
    assert {(f.split, f.label, f.prefix) for f in got} == {
        (split, k, f"{prefix}t{k + 1}/") for k in range(5) for split, prefix in (("train_real", ""), ("train_generated", "gen_"))
    }
    assert [f.path.name for f in got if f.split == "train_generated"] == ["gen_t1", "t2", "gen_t3", "t4", "gen_t5"]


def test_missing_folders_are_all_named_at_once(tmp_path):
    make(tmp_path, "generated/a")
    with pytest.raises(ValueError) as error:
        folders.layout("subtask1", tmp_path, tmp_path / "nowhere", tmp_path / "none")
    message = str(error.value)
    assert message.startswith("missing folders (5): ") and "<train_dir>/{generated,real_used,real_not_used}" in message
    for name in ("real_used", "real_not_used", "nowhere/generated", "nowhere/real_unknown", "none"):
        assert str(tmp_path / name) in message
    with pytest.raises(ValueError, match="missing folders .1.: .*nowhere .train.; expected <train_dir>/<class>"):
        folders.layout("images", tmp_path / "nowhere")


def both(root):
    """The folders of both subtasks."""
    make(root / "s1" / "train", "generated/a", "real_used/a", "real_not_used/a")
    make(root / "s1" / "test", "generated/a", "real_unknown/a")
    for k in range(1, 6):
        make(root / "s2" / "train", f"real/t{k}/a", f"generated/gen_t{k}/a")
    make(root / "s2" / "test", "generated_unknown/a")
    return root


@pytest.mark.parametrize(
    "task, train, test, message",
    [
        ("subtask1", "s1/test", "s1/train", "folders of --test_dir are in --train_dir: are the two swapped?"),
        ("subtask2", "s2/test", "s2/train", "folders of --test_dir are in --train_dir: are the two swapped?"),
        ("subtask1", "s1", "", "is --train_dir={root}/s1/train meant?"),
        ("subtask2", "s2", "s2", "is --train_dir={root}/s2/train --test_dir={root}/s2/test meant?"),
        ("subtask1", "s1/train/generated", "", "is --train_dir={root}/s1/train meant?"),
        ("subtask1", "s1/train", "s1", "is --train_dir={root}/s1/train --test_dir={root}/s1/test meant?"),
        ("subtask1", "s2/train", "s2/test", "these are the folders of subtask2: is --task=subtask2 meant?"),
        ("subtask2", "s1/train", "", "these are the folders of subtask1: is --task=subtask1 meant?"),
        ("subtask2", "s2/test", "", "{root}/s2/test/generated_unknown is of a test set: is --test_dir={root}/s2/test meant?"),
        (
            "subtask1",
            "s1/train/real_used",
            "s2",
            "{root}/s2 holds test, test/generated_unknown, train, train/generated, train/real",
        ),
        ("subtask1", "none", "", "{root}/none holds nothing, it is not there"),
    ],
)
def test_missing_folders_say_what_may_have_been_meant(tmp_path, task, train, test, message):
    root = both(tmp_path)
    with pytest.raises(ValueError, match="^missing folders ") as error:
        folders.layout(task, root / train, root / test if test else "")
    assert str(error.value).endswith(message.format(root=root))


def test_train_and_test_folders_are_no_classes(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "more/1.png")
    with pytest.raises(ValueError, match=f"its folders are more, test, train, no classes; use --train_dir={tmp_path}/train$"):
        folders.layout("images", tmp_path)


def test_class_names_are_compared_in_one_unicode_form(tmp_path):
    make(tmp_path / "train", "cafe\u0301/a", "b/a")
    make(tmp_path / "test", "caf\u00e9/a")
    got = folders.layout("images", tmp_path / "train", tmp_path / "test")
    assert [(f.split, f.label) for f in got] == [("train", 0), ("train", 1), ("test", 1)]
    make(tmp_path / "train", "caf\u00e9/a")
    with pytest.raises(ValueError, match="of which two have one name but for blanks or the Unicode form"):
        folders.layout("images", tmp_path / "train")


def test_map_replaces_a_folder(tmp_path):
    make(tmp_path, "generated/a", "elsewhere/a", "real_not_used/a")
    got = folders.layout("subtask1", tmp_path, mapped={"real_used": tmp_path / "elsewhere", "real_unknown": tmp_path / "elsewhere"})
    assert {f.name: f.path.name for f in got} == {
        "generated": "generated",
        "real_used": "elsewhere",
        "real_not_used": "real_not_used",
        "real_unknown": "elsewhere",
    }
    with pytest.raises(ValueError, match="--map=t1=.*subtask1 has no official folder of that name"):
        folders.layout("subtask1", tmp_path, mapped={"t1": tmp_path, "real_used": tmp_path})


def test_classes_are_sorted_folder_names(tmp_path):
    make(tmp_path / "train", "b/a", "a/a", "c/a", ".hidden/a")
    make(tmp_path / "test", "c/a")
    got = folders.layout("images", tmp_path / "train", tmp_path / "test")
    assert [(f.split, f.name, f.label) for f in got] == [
        ("train", "a", 0),
        ("train", "b", 1),
        ("train", "c", 2),
        ("test", "c", 2),
    ]
    make(tmp_path / "test", "d/a")
    with pytest.raises(ValueError, match=r"test: class folders \['c', 'd'\], expected \['a', 'b', 'c'\]"):
        folders.layout("images", tmp_path / "train", tmp_path / "test")
    with pytest.raises(ValueError, match="train/a: no class folders in it; a flat folder needs --labels"):
        folders.layout("images", tmp_path / "train" / "a")
    assert [f.path for f in folders.layout("images", tmp_path / "train" / "a", flat=True)] == [tmp_path / "train" / "a"]


def test_scan_orders_by_name_and_keeps_subfolders_in_ids(tmp_path):
    make(tmp_path, "b.png", "a.x.jpg", "sub/c.png", ".hidden.png", ".checkpoints/d.png", "notes.txt", "ids.csv")
    files, rejected = folders.scan(whole(tmp_path), {os.path.realpath(tmp_path / "ids.csv")})
    assert [(f.id, f.order, f.label, f.split, f.group) for f in files] == [
        (f"t1/{stem}", order, 3, "train", f"t1/{stem}") for order, stem in enumerate(["a.x", "b", "notes", "sub/c"])
    ]
    assert rejected == []


def test_scan_refuses_hostile_names(tmp_path):
    surrogate = os.fsdecode(b"\xff.png")
    make(tmp_path, "a\nb.png", surrogate, "x\x1b[31m.png", "<img onerror=x>.png", "dir\n/c.png", 'ü, "q".png')
    formulas = {"=cmd.png": "starts with '='", "\uff0bc.png": "starts with '\uff0b'", "a;@b.png": "holds ';@'"}
    make(tmp_path, *formulas)
    files, rejected = folders.scan(folders.Folder("x", tmp_path, "test", -1), set())
    assert [f.id for f in files] == ["<img onerror=x>", 'ü, "q"']
    reasons = {os.path.basename(path): reason for path, reason in rejected}
    for name, what in formulas.items():
        assert reasons.pop(name) == f"the name {what}, which spreadsheets take for a formula"
    assert reasons.keys() == {"a\nb.png", surrogate, "x\x1b[31m.png", "c.png"}
    assert set(reasons.values()) == {"the name holds unprintable characters, or bytes that are not UTF-8"}


def test_scan_follows_links_only_within_the_folder(tmp_path):
    root = make(tmp_path / "root", "a.png", "sub/b.png")
    make(tmp_path, "secret.png", "outside/c.png")
    (root / "inside.png").symlink_to("a.png")
    (root / "leaves.png").symlink_to(tmp_path / "secret.png")
    (root / "outside").symlink_to(tmp_path / "outside")
    (root / "up").symlink_to("..")
    (root / "sub" / "loop").symlink_to(root)
    (root / "self.png").symlink_to("self.png")
    (root / "dangling.png").symlink_to("nothing.png")
    os.mkfifo(root / "pipe.png")
    (tmp_path / "linked").symlink_to(root)  # the folder itself may be a link
    files, rejected = folders.scan(whole(tmp_path / "linked"), set())
    assert [f.id for f in files] == ["t1/a", "t1/inside", "t1/sub/b"]
    assert {os.path.relpath(path, tmp_path / "linked"): reason for path, reason in rejected} == {
        "leaves.png": "a link that leaves the folder",
        "outside": "a link that leaves the folder",
        "up": "a link that leaves the folder",
        "sub/loop": "a link to a folder",
        "self.png": "cannot be read: Too many levels of symbolic links",
        "dangling.png": "cannot be read: No such file or directory",
        "pipe.png": "not a regular file",
    }


def test_empty_folders_are_named_with_a_reason(tmp_path):
    make(tmp_path, "a/x.png", "b/.hidden", "c/pipe.txt")
    names = [folders.Folder(n, tmp_path / n, "train", 0) for n in "abc"]
    files, _ = folders.scan(names[0], set())
    with pytest.raises(ValueError, match=f"^no image in {tmp_path}/b, {tmp_path}/c$"):
        folders.require_images(names, files, [(str(tmp_path / "a" / "y.png"), "empty file")])
    with pytest.raises(ValueError, match=f"^no image in {tmp_path}/c; {tmp_path}/c/pipe.txt: empty file$"):
        folders.require_images([names[0], names[2]], files, [(str(tmp_path / "c" / "pipe.txt"), "empty file")])


def files_of(tmp_path):
    make(tmp_path, "1.png", "2.png", "3.png")
    train, _ = folders.scan(folders.Folder("x", tmp_path, "train", -1), set())
    test, _ = folders.scan(folders.Folder("x", tmp_path, "test", -1), set())
    return train + test


def test_attach_prefers_the_split_and_warns_of_gaps(tmp_path, capsys):
    table = tmp_path / "groups.csv"
    table.write_text("\ufeffsplit,id,group\n,1,any\ntest,1,second\ntrain,2,x\ntest,9,y\n", encoding="utf-8")
    assert folders.attach(files_of(tmp_path / "i"), str(table), ("group",)) == (["any", "x", None, "second", None, None], 1)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {table}: 1 ids match no image, the first is '9'",
        f"warning: {table}: 3 images are not in it, the first is 'train 3'",
    ]
    table.write_text("class,id\nb,1\na,2\na,3\n")
    assert folders.attach(files_of(tmp_path / "i"), str(table), ("label", "class")) == (["b", "a", "a"] * 2, 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,a\n2,b\n", "the header is '1,a', expected id,group, with or without split"),
        ("", "the header is '', expected id,group"),
        ("id,group\n1\n", "line 2: the id or the group is empty"),
        ("id,group\n1,a\n\n,b\n", "line 4: the id or the group is empty"),
        ("id,group\n1,a\n1,b\n", "line 3: id '1' has a second group"),
        (b"id,group\n1,\xff\n", "cannot be read as CSV: 'utf-8' codec"),
        ("id,group,group\n1,a,b\n", "the header is 'id,group,group', expected id,group"),
        ("id,group\n1,=a\n", "line 2: the group '=a' starts with '=', which spreadsheets take for a formula"),
        ('id,group\n1,a\n2,"a\nb"\n', "line 4: the group 'a\\nb' holds unprintable characters"),
        ("id,group\n1,a\0\n", "line 2: the group 'a\\x00' holds unprintable characters"),
        ("id,group\n1,\u200bp\n", "line 2: the group '\\u200bp' holds unprintable characters"),
        ("id,group\n1,p\u00a01\n", "line 2: the group 'p\\xa01' holds unprintable characters"),
        ("id,group\n1,Doe, J\n", "line 2: 3 cells, the header has 2; put text with a comma in quotes"),
        ("id,group\n1, \n", "line 2: the id or the group is empty"),
        ("id,group\n1,a\n1 ,b\n", "line 3: id '1' has a second group"),
        ("id;group\n1;a\n", "the cells of its header 'id;group' are separated by ';', expected commas: id,group"),
        ("split\tid\tgroup\n", "are separated by '\\t', expected commas"),
        ("id,group\n1," + "x" * 200_000, "cannot be read as CSV: field larger than field limit"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
    table = tmp_path / "groups.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        folders.read_column(str(table), ("group",))
    assert str(table) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("split", ["", "train"])
def test_what_spreadsheets_do_to_a_table_is_undone(tmp_path, split):
    table = tmp_path / "groups.csv"
    head, cell = ("Split, ", f" {split} ,") if split else ("", "")
    lines = [f"{head}ID, Group,,", f'{cell}1 , "Doe, J" ,', f"{cell}\u00a02,e\u0301", ",,", "", f"{cell}2,\u00e9 "]
    table.write_bytes("\r\n".join(["\ufeff" + lines[0], *lines[1:]]).encode())
    assert folders.read_column(str(table), ("group",)) == {(split, "1"): "Doe, J", (split, "2"): "\u00e9"}


def test_ids_with_an_extension_are_found_where_only_one_image_can_be_meant(tmp_path):
    make(tmp_path / "i", "1.png", "2.PNG", "3.jpg", "4.jpg", "5.jpeg", "6.png.png", "6.png", "s/7.png", "8.png")
    files, _ = folders.scan(folders.Folder("x", tmp_path / "i", "train", -1), set())
    table = tmp_path / "groups.csv"
    rows = ["1.png,a", "2.png,b", "3.JPG,c", "4.png,x", "4.jpg,d", "5.png,x", "5.jpg,y", "6.png,f", "s\\7,g", "./8.png,h"]
    table.write_text("\n".join(["id,group", *rows]) + "\n")
    values, unmatched = folders.attach(files, str(table), ("group",))
    found = dict(zip([file.id for file in files], values, strict=True))
    assert found == {"1": "a", "2": "b", "3": "c", "4": "d", "5": None, "6.png": "f", "6": None, "8": "h", "s/7": "g"}
    assert unmatched == 3


def test_ids_without_their_folder_are_said_to_be_of_other_images(tmp_path, capsys):
    make(tmp_path, "used/1.png", "reference/1.png")
    used, _ = folders.scan(folders.Folder("used", tmp_path / "used", "train_real", 1, "real_used/"), set())
    reference, _ = folders.scan(folders.Folder("reference", tmp_path / "reference", "reference", 0), set())
    table = tmp_path / "groups.csv"
    table.write_text("id,group\n1,p\n")
    assert folders.attach(used + reference, str(table), ("group",)) == ([None, "p"], 0)
    assert f"warning: {table}: no image of train_real is in it, one is 'real_used/1'\n" in capsys.readouterr().err


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="none.csv: cannot be read as CSV: .*No such file"):
        folders.read_column(str(tmp_path / "none.csv"), ("group",))


@pytest.mark.parametrize(
    "text, message",
    [
        ("split,id,label\ntrain,1,0\n", "no column 'group'; pack the data again"),
        ("split,id,label,group\ntrain,1,x,g\n", "not the table of packed files: invalid literal"),
        ("split,id,label,group,bytes\ntrain,1,0,g\n", "not the table of packed files: a line is cut short"),
        (b"split,id,label,group\ntrain,1,0,\xff\n", "not the table of packed files: not UTF-8"),
    ],
)
def test_a_table_of_packed_files_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "files.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        folders.read_files(tmp_path / "files.csv")
    assert str(error.value).startswith(f"{tmp_path}/files.csv: {message}")


def test_the_facts_of_packed_files_are_read_in_order(tmp_path):
    path = tmp_path / "files.csv"
    head = "split,id,label,group,bytes,mode,metadata_bytes,order\n"
    path.write_text(head + "train_real,b,1,b,120,L,0,1\ntest_real,x,-1,x,1,L,0,0\ntrain_real,a,0,a,90,P,17,0\n")
    found = folders.read_facts(path, "train_real")
    assert found == {"id": ["b", "a"], "bytes": [120, 90], "mode": ["L", "P"], "metadata_bytes": [0, 17]}
    for text, message in (
        ("split,id,bytes\ntrain_real,a,1\n", "no column 'mode'"),
        (head + "train_real,a,0,a,many,L,0,0\n", "not the"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            folders.read_facts(path, "train_real")
