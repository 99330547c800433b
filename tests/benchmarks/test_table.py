"""The table: what is measured, what is open, and that the page shows what the files hold."""

import json

import pytest

from benchmarks import __main__ as command
from benchmarks import candidates, table
from benchmarks.rows import ROWS, line, share

ABOUT = {"device": "cpu", "devices": 1, "gpu": False, "machine": "m, 2 cores", "cores": 2, "jax": "1", "peer": None, "quick": False}
ABOUT |= {"repeats": 2, "seconds": 1.0}


def _results(**rows):
    return ABOUT | {
        "rows": {name.replace("_", "/", 1): {"about": "64 px", "lines": lines, "load": 0.4} for name, lines in rows.items()}
    }


def _pair():
    ours, theirs = [200.0, 100.0], [50.0, 100.0]
    return [line("ours", "images/s", ours, ours, False), line("theirs", "images/s", theirs, ours, False)]


def test_a_ratio_is_ours_by_theirs_and_in_growth_theirs_by_the_first():
    first, other = [100.0, 200.0], [200.0, 600.0]
    assert "ratio" not in line("a", "x/s", first, first, True)
    assert line("b", "x/s", other, first, False)["ratio"] == {
        "median": pytest.approx(5 / 12),
        "min": pytest.approx(1 / 3),
        "max": 0.5,
    }
    assert line("b", "x/s", other, first, True)["ratio"] == {"median": 2.5, "min": 2.0, "max": 3.0}


def test_the_peak_is_that_of_the_data_sheet_or_none():
    assert share("NVIDIA H100 80GB HBM3", "bfloat16", 98.9e12)["share_of_peak"] == pytest.approx(0.1)
    assert share("NVIDIA H100 80GB HBM3", "float32", 98.9e12)["share_of_peak"] == pytest.approx(0.2)
    assert share("cpu", "bfloat16", 1e11) == {"flops_per_second": 1e11}


def test_a_line_a_side():
    lines = _pair() + [{"side": "compiled", "open": "no a|b"}]
    lines[0] |= {"ready_seconds": 2.04, "flops_per_second": 2e12, "share_of_peak": 0.25, "input_wait": 0.031}
    assert table.row("loader/64", _results(loader_64=lines)) == [
        "| loader/64: 64 px | ours | 150 (100 to 200) images/s |  |"
        " first round after 2.0 s, 2 TFLOP/s, 25.0% of the peak, waits 3.1% for input |",
        "|  | theirs | 75.0 (50.0 to 100.0) images/s | ours by this 2.50 (1.00 to 4.00) |  |",
        "|  | compiled | open: no a/b | |  |",
    ]


def test_a_busy_machine_is_told():
    results = _results(loader_64=_pair())
    results["rows"]["loader/64"]["load"] = 7.26
    assert table.row("loader/64", results)[0].startswith("| loader/64: 64 px; busy machine, load 7.3 | ours |")


def test_what_was_not_measured_is_open_and_says_why():
    found = table.table(_results()).splitlines()
    assert len(found) == 2 + len(ROWS)
    assert "| training/resnet18/256/bfloat16 | | open: needs a GPU | | |" in found
    assert "| loader/64 | | open: not measured yet | | |" in found
    assert "| growth/processes | | open: needs a CPU | | |" in table.table(_results() | {"gpu": True})


def test_the_same_command_goes_on_with_what_is_open():
    results = _results(loader_64=_pair(), loader_256=[*_pair(), {"side": "theirs", "open": "needs --peer_python"}])
    rest = command.chosen([], results)
    assert "loader/64" not in rest and rest[0] == "loader/256"
    assert not any("/256/bfloat16" in name for name in rest)  # they need a GPU
    assert command.chosen(["loader/*"], results) == ["loader/64", "loader/256"]
    with pytest.raises(ValueError, match="--rows=loader: no such row, use loader/64, "):
        command.chosen(["loader"], results)


def test_results_of_another_machine_are_not_mixed(tmp_path):
    path = tmp_path / "cpu.json"
    assert command.load(path, ABOUT) == _results()
    path.write_text(json.dumps(_results(loader_64=_pair()) | {"peer": {"torch": "2"}}))
    assert command.load(path, ABOUT)["peer"] == {"torch": "2"}
    assert table.finished("loader/64", command.load(path, ABOUT | {"peer": {"torch": "2"}}))
    for other in ({"cores": 1}, {"quick": True}, {"peer": {"torch": "3"}}):
        with pytest.raises(ValueError, match=f"has {next(iter(other))} .* give another --output"):
            command.load(path, ABOUT | other)


def test_the_page_shows_the_results_that_are_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(command.DOCS.read_text())
    table.render(page, command.FOLDER)
    assert page.read_text() == command.DOCS.read_text(), "python -m benchmarks writes it"


def test_the_rest_of_a_page_stays(tmp_path):
    (tmp_path / "cpu.json").write_text(json.dumps(_results(loader_64=_pair())))
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{table.MARKS[0]}old\n{table.MARKS[1]}\nafter\n")
    table.render(page, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n\n") and text.endswith("\nafter\n") and "old" not in text
    assert "### 1 x cpu\n" in text and "| ours by this 2.50 (1.00 to 4.00) |" in text


@pytest.mark.parametrize(("interval", "text"), [([-0.02, 0.01], "-0.005 (-0.020 to +0.010)"), ([None, None], "-0.005")])
def test_a_difference_without_an_interval_stands_alone(interval, text):
    assert candidates.shown({"difference": -0.005, "interval": interval}) == text
