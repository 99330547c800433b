"""Foreign ground: data sets that name code, files that are not ours, records of another data set, numbers that are none."""

import collections
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from fingerprint_jax import evaluate, methods
from fingerprint_jax.backbones import pretrained
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.data.source import Source, open_source
from fingerprint_jax.evaluation import score
from fingerprint_jax.runs import checkpoint, ranges
from fingerprint_jax.runs.run import Run
from fingerprint_jax.training import loop
from fingerprint_jax.training.model import model_of
from tests.audit import test_audit
from tests.backbones import test_pretrained
from tests.conftest import CONFIGS, ROOT, last_state, load_config, same_bytes
from tests.foreign import CONFIG, DATA, fit, reseal, tree
from tests.test_evaluate import run_binary

pytestmark = pytest.mark.usefixtures("ends")


def _refusal(act) -> str:
    """The one line that an act ends with; '' where it ends well."""
    open_source.cache_clear()
    try:
        act()
    except (ValueError, OSError) as error:
        assert "\n" not in str(error).strip(), error
        return str(error)
    return ""


def _started(module: str, *arguments, cwd=ROOT) -> tuple[int, str]:
    """Exit status and standard error of a real binary."""
    command = [sys.executable, "-m", f"fingerprint_jax.{module}", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def _listed(counter: collections.Counter) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counter.items(), key=lambda item: (-item[1], item[0])))


# A data set that names code


HOSTILE = (
    "evil",
    "evil.Tensor",
    "evil:Tensor",
    "tensorflow_datasets.core.features.evil.Tensor",
    "{here}/evil.py",
    "../evil.py",
    "../../../../evil.Tensor",
    "{here}/{{DATASET}}-{{SPLIT}}.{{FILEFORMAT}}",
    "/dev/zero",
    "file:///dev/zero",
    "http://127.0.0.1:{port}/evil.py",
    "https://127.0.0.1:{port}/{{DATASET}}",
    "gs://127.0.0.1:{port}/evil",
)
# Fields that TFDS reads, and would have read; protobuf takes each under two names.
FIELDS = (
    "pythonClassName",
    "python_class_name",
    "filepathTemplate",
    "filepath_template",
    "moduleName",
    "module_name",
    "fileFormat",
    "file_format",
    "alternativeFileFormats",
    "configDescription",
    "shard_lengths",
    "name",
)


def _places(node) -> list[tuple]:
    """(container, key or position) of everything in a JSON."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in list(items) for found in [(node, key), *_places(value)]]


def _poison(content: dict, rng, hostile: str) -> str:
    """Puts a hostile text at a random place: of a text, of any value, of a name, or in a field that was not there; says where."""
    places = _places(content)
    how = rng.choice(["text", "text", "value", "name", "field"])
    if how == "field":
        objects = [content, *(node[key] for node, key in places if isinstance(node[key], dict))]
        objects[rng.integers(len(objects))][str(rng.choice(FIELDS))] = hostile
        return how
    if how == "name":
        places = [(node, key) for node, key in places if isinstance(node, dict)]
    elif how == "text":
        places = [(node, key) for node, key in places if isinstance(node[key], str)]
    node, key = places[rng.integers(len(places))]
    if how == "name":
        node[hostile] = node.pop(key)
    else:
        node[key] = hostile
    return how


def _content(source: Source, split: str) -> tuple:
    rows = source.rows(split)
    return rows.ids.tolist(), rows.labels.tolist(), rows.groups.tolist(), source.images(rows.index).tobytes()


def _contents(source: Source) -> list[tuple]:
    return [_content(source, split) for split in source.splits]


def test_a_data_set_that_names_code_runs_none(trained, data_dir, tmp_path, monkeypatch, counts, report, ends):
    root, expected, rng = tmp_path / "data", _contents(Source(data_dir, "subtask2")), np.random.default_rng(4)
    shutil.copytree(data_dir, root)
    folder, mark = root / DATA, tmp_path / "ran"
    for place in (tmp_path, root, folder):
        (place / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Tensor: pass\n")
        monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(folder)
    asked = socket.create_server(("127.0.0.1", 0))
    asked.setblocking(False)
    texts = [text.format(here=tmp_path, port=asked.getsockname()[1]) for text in HOSTILE]
    shutil.copy(next(folder.glob("*train_real*")), tmp_path / "fingerprint-train_real.array_record")
    jsons = {path.name: path.read_text() for path in folder.glob("*.json")}
    assert len(jsons) == 3

    def nothing_ran():
        assert not mark.exists() and "evil" not in sys.modules
        with pytest.raises(BlockingIOError):
            asked.accept()

    def read():
        source = Source(str(root), "subtask2")
        assert _contents(source) == expected
        source.verify()

    seen, trials, started = collections.Counter(), counts(60, 2000), counts(0, 15)
    for trial in range(trials + started):
        ends()
        for name, text in jsons.items():
            (folder / name).write_text(text)
        name = str(rng.choice(sorted(jsons)))
        content = json.loads(jsons[name])
        _poison(content, rng, str(rng.choice(texts)))
        (folder / name).write_text(json.dumps(content))
        if isinstance(json.loads((folder / "summary.json").read_text()).get("files"), dict) and "seal" in content | {"seal": 1}:
            with contextlib.suppress(OSError, TypeError):  # it names a file that is not there: so it stays
                reseal(folder, sizes=bool(rng.integers(2)))
        if trial < trials:
            line = _refusal(read)
        else:
            status, text = _started(
                "evaluate", f"--workdir={trained}", f"--data_dir={root}", "--verify", "--split=valid", cwd=folder
            )
            line = text.splitlines()[-1] if status else ""
            assert status in (0, 1) and (not status or line.startswith("evaluate: error: ")), text
        nothing_ran()
        assert not line or str(folder) in line, line
        seen["refused in one line that names the data set" if line else "without effect, the records as before"] += 1
    asked.close()
    report(
        "a hostile text in a JSON of a packed data set: a module beside it, a path, a device, an address",
        f"{trials} in process, {started} by `evaluate`",
        f"{_listed(seen)}; nothing imported, nothing asked for over the network",
    )


# Files that are not ours


# What a run, an evaluation or an audit writes to.
OURS = (
    *("checkpoints", "digests", "predictions", "outputs", "features", "tensorboard", "report", "profile", "damaged", "children"),
    *("config.json", "provenance.json", "metrics.jsonl", "results.json", "results.lock", "done", "lock", "watch-valid"),
    *("data", "stages", "network", "folders.json", "audit_plan.json", "audit.json", "scores.csv", "seconds.json", "index.html"),
)
INSIDE = ("4", "4.json", "7/x", "7.removed", "heldout.csv", "heldout.csv.json", "index.html", "model.npz", "config.json")
INSIDE += (
    "7.orbax/x",
    "fingerprint/subtask1/1.0.0/summary.json",
    "fingerprint/subtask1/1.0.0/x",
    "round0/config.json",
    "panel.json",
)
STRANGERS = ("notes.md", "model.pt", "weeks/of/work", "photos/1.png", "lost+found/x", ".DS_Store", "train.out", "log.txt", "x.csv")


def _strange(rng) -> bytes:
    return [b"my keys\n", b'{"epoch": 1}\n', b"{}", bytes(rng.integers(0, 256, 50, np.uint8)), b""][rng.integers(5)]


def _place(path, rng, outside) -> None:
    """A file, a folder with files or a link to something outside at a path, in the place of what was there."""
    if any(parent.is_symlink() or parent.is_file() for parent in path.parents):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = rng.integers(4)
    if kind == 0:
        path.write_bytes(_strange(rng))
    elif kind == 1:
        for name in rng.choice(INSIDE, 3):
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(_strange(rng))
    else:
        path.symlink_to(rng.choice(sorted(str(found) for found in outside.iterdir())))


@pytest.fixture
def outside(trained, tmp_path):
    """Files and folders that links name: of somebody else, and a run."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "keys").write_text("my keys")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"cut')
    (folder / "empty").mkdir()
    shutil.copytree(trained, folder / "run")
    for name in INSIDE:
        (folder / "full" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "full" / name).write_text("weeks of work")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of images of an audit, as few as it takes."""
    sizes = {"size": 32, "real": 20, "generated": 40, "unknown": 6, "reference": 20, "slices": 1}
    return test_audit.folders(tmp_path_factory.mktemp("images"), sizes=sizes)


@pytest.fixture(scope="module")
def audited(images, tmp_path_factory):
    """An audit that has come as far as its plan; to be copied."""
    output = tmp_path_factory.mktemp("audited") / "audit"
    test_audit.audit(images, output, plan_only=True)
    return output


def _acts(data_dir, images, tmp_path) -> dict:
    """What a user would start in a folder."""
    for name in ("p", "t"):
        (tmp_path / f"{name}.csv").write_text("a,0\nb,1\nc,0\nd,1\n")
    score = (f"--predictions={tmp_path / 'p.csv'}", f"--truth={tmp_path / 't.csv'}", "--task=subtask1")

    def fails(run, *_):
        (run.workdir / "checkpoints").mkdir()
        raise ValueError("a mistake that nobody could know")

    def fit_in_vain(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train", fails)
            fit(folder, data_dir)

    return {
        "main": lambda folder: fit(folder, data_dir),
        "main that fails": fit_in_vain,
        "main --allow_change": lambda folder: fit(folder, data_dir, num_steps=6),
        "evaluate": lambda folder: run_binary(evaluate, f"--workdir={folder}", "--report"),
        "evaluate --recompute": lambda folder: run_binary(evaluate, f"--workdir={folder}", "--recompute"),
        "evaluate --watch": lambda folder: run_binary(evaluate, f"--workdir={folder}", "--watch=1", "--split=valid"),
        "evaluate --output": lambda folder: run_binary(evaluate, f"--output={folder}", *score),
        "audit": lambda folder: test_audit.audit(images, folder, plan_only=True),
    }


def _kept(before: dict, after: dict, moved: str = "") -> None:
    """Every byte that was in a folder is there, at its place; what lay in checkpoints may have been moved aside, to `damaged`."""
    contents = collections.Counter(value for path, value in after.items() if path.startswith(moved))
    for path, value in before.items():
        assert after.get(path) == value or (moved and path.startswith("checkpoints") and contents[value]), path


def test_nothing_of_a_folder_that_is_not_ours_is_lost(trained, audited, images, outside, data_dir, tmp_path, counts, report, ends):
    acts, rng, seen, trials = _acts(data_dir, images, tmp_path), np.random.default_rng(5), collections.Counter(), counts(40, 1500)
    apart = tree(outside)
    for trial in range(trials):
        ends()
        folder = tmp_path / f"folder{trial}"
        for name in rng.choice((*OURS, *STRANGERS), rng.integers(1, 5), replace=False):
            _place(folder / name, rng, outside)
        name = str(rng.choice([act for act in acts if act != "main --allow_change"]))
        before = tree(folder)
        line = _refusal(lambda: acts[name](folder))  # noqa: B023 - called at once
        after = tree(folder)
        _kept(before, after)
        assert tree(outside) == apart, (name, before)
        if line:
            assert not (new := after.keys() - before.keys() - {"lock"}), (name, line, new)
        seen[f"{name.split()[0]}: {'refused' if line else 'ran'}"] += 1
        shutil.rmtree(folder, ignore_errors=True)
    report(
        "`main`, `evaluate` and `audit` in a folder with 1 to 4 files, folders or links of others, most by names that we write",
        f"{trials}, in process",
        f"{_listed(seen)}; every byte there afterwards, that of what links name too",
    )


def test_nothing_strange_in_a_run_or_an_audit_is_lost(trained, audited, images, outside, data_dir, tmp_path, counts, report, ends):
    acts, rng, seen, trials = _acts(data_dir, images, tmp_path), np.random.default_rng(6), collections.Counter(), counts(8, 600)
    apart, step = tree(outside), methods.get("gradient").state(Run.load(trained))
    names = [name for name in OURS if name not in ("config.json", "provenance.json", "folders.json")]
    written = [f"checkpoints/{step}", f"digests/{step}.json", "predictions/heldout.csv", "predictions/heldout.csv.json"]
    written += ["report/index.html", "children/round0", "watch-valid/config.json", f".results.json.{os.getpid()}.tmp"]
    written += ["stages/panel.json", "data/fingerprint/subtask1/.packing", "tensorboard/events", f"damaged/{step}"]
    inside = [f"{name}/{mine}" for name in OURS if "." not in name for mine in ("mine.txt", "mine.npz", "mine.csv", "9/mine")]
    inside += [f"{name}/{step}/mine" for name in ("checkpoints", "damaged")]
    places = {"link": [*names, *written], "file": [*STRANGERS, *inside]}
    for trial in range(trials):
        ends()
        folder, name = tmp_path / f"run{trial}", str(rng.choice([act for act in acts if act != "evaluate --output"]))
        ours = shutil.copytree(audited if name == "audit" else trained, folder, symlinks=True)
        if name.startswith("main") and rng.integers(2):
            (folder / "done").unlink()
        if name.startswith("evaluate") and rng.integers(2):
            (folder / "results.json").unlink()
        strange = {}
        for _ in range(rng.integers(1, 4)):
            kind = str(rng.choice(["link", "file"]))
            path = folder / str(rng.choice(places[kind]))
            if any(parent.is_symlink() or parent.is_file() for parent in path.parents) or (kind == "file" and path.exists()):
                continue
            if kind == "file":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(strange.setdefault(str(path.relative_to(ours)), b"strange %d" % rng.integers(1e9)))
                continue
            if path.is_dir() and not path.is_symlink():
                if any(str(path.relative_to(ours)) in known for known in strange):
                    continue
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(rng.choice(sorted(map(str, outside.iterdir()))))
        strange = {known: value for known, value in strange.items() if (folder / known).is_file()}
        line = _refusal(lambda: acts[name](folder))  # noqa: B023 - called at once
        _kept(strange, tree(folder), "damaged")
        assert tree(outside) == apart, (name, line)
        seen[f"{name.split()[0]}: {'refused' if line else 'ran'}"] += 1
        shutil.rmtree(folder)
    report(
        "the same in a finished run or a begun audit of ours, with 1 to 3 strange files, or links to files and folders elsewhere",
        f"{trials}, in process",
        f"{_listed(seen)}; every strange byte there afterwards (in `damaged/` what lay in a checkpoint), what links name unchanged",
    )


# Other records under an old summary


def test_no_figure_of_records_that_are_not_those_of_the_summary(trained, data_dir, tmp_path, counts, report, ends, caplog):
    root, rng, seen, trials = tmp_path / "data", np.random.default_rng(7), collections.Counter(), counts(12, 600)
    packed = Source(data_dir, "subtask2")
    other = phantom.subtask2(seed=9, size=48, leak=0.5, real=8, generated=20, unknown=20)
    phantom.write(tmp_path / "other", "subtask2", other, seed=9)
    packing.pack("subtask2", tmp_path / "packed", tmp_path / "other" / "train", tmp_path / "other" / "test")
    shutil.copytree(data_dir, root)
    workdir = shutil.copytree(trained, tmp_path / "run")
    folder, scored = root / DATA, (workdir / "results.json").read_text()
    figure = score.figures(workdir)["splits"]["heldout"]["metrics"]["accuracy"]
    files, summary = sorted(folder.glob("*array_record*")), (folder / "summary.json").read_text()
    others = [*sorted((tmp_path / "packed" / DATA).glob("*array_record*")), *files]

    def swapped(content, path):
        return others[rng.integers(len(others))].read_bytes()

    def of_another_pack(content, path):
        return (tmp_path / "packed" / DATA / path.name).read_bytes()

    def spliced(content, path):
        own, at = of_another_pack(content, path), rng.integers(1, 4) * 65536  # blocks of ArrayRecord begin there
        return content[:at] + own[at:]

    def appended(content, path):
        return content + (swapped(content, path) if rng.integers(2) else rng.bytes(rng.integers(1, 100_000)))

    def truncated(content, path):
        return content[: rng.integers(len(content))]

    def flipped(content, path):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
        return bytes(changed)

    whole = {path: path.read_bytes() for path in files}
    faults = (swapped, of_another_pack, spliced, appended, truncated, flipped)
    for _ in range(trials):
        ends()
        caplog.clear()
        for path, content in whole.items():
            path.write_bytes(content)
        (folder / "summary.json").write_text(summary)
        path = files[rng.integers(len(files))]
        path.write_bytes(faults[rng.integers(len(faults))](whole[path], path))
        with_sizes = rng.integers(2)
        if not with_sizes:  # as of a data set that was packed before there were sizes
            reseal(folder, sizes=False)
        first = bool(rng.integers(2))
        (workdir / "results.json").unlink(missing_ok=True)
        if not first:
            (workdir / "results.json").write_text(scored)
        flag = () if first else ("--verify",)
        line = _refusal(lambda: run_binary(evaluate, f"--workdir={workdir}", f"--data_dir={root}", *flag))  # noqa: B023
        if not line:
            assert score.figures(workdir)["splits"]["heldout"]["metrics"]["accuracy"] == figure
            source, apart = Source(str(root), "subtask2"), False
            for split in packed.splits:
                # One that has no part in the figure cannot be compared where it has damaged records, and is named.
                if split != "train_generated" and f"damaged records in {split}: its content is not compared" in caplog.text:
                    apart = True
                else:
                    assert _content(source, split) == _content(packed, split), split
            same = "without effect (padding, the same file)"
            seen["named, in a split without a part in the figure" if apart else same] += 1
            continue
        assert first != (workdir / "results.json").exists()
        kinds = {
            "bytes were packed": "by its size",
            "are not those that summary.json describes": "by its content, " + ("before a first figure" if first else "--verify"),
            "damaged": "by ArrayRecord or its number of records",
        }
        seen[next(how for text, how in kinds.items() if text in line)] += 1
    report(
        "packed records swapped, spliced, appended to, cut or flipped under an old summary.json, half of them without sizes in it",
        f"{trials}, in process",
        f"never a figure of other records: {_listed(seen)}",
    )


# Numbers that are none


def _ruined(array: np.ndarray, rng) -> np.ndarray:
    array = np.array(array)
    array.reshape(-1)[rng.integers(array.size)] = rng.choice([np.nan, np.inf, -np.inf])
    return array


def test_weights_with_a_number_that_is_none_are_refused(tmp_path, counts, report):
    rng, path, trials = np.random.default_rng(8), tmp_path / "weights.safetensors", counts(20, 500)
    whole, net = test_pretrained.tensors("resnet_tiny"), test_pretrained.build()
    whole["fc.weight"] = np.zeros((2, 16), np.float32)
    for _ in range(trials):
        name = str(rng.choice([name for name, value in whole.items() if value.dtype == np.float32]))
        kind = [np.float16, np.float32, np.float64][rng.integers(3)]
        save_file(whole | {name: _ruined(whole[name].astype(kind), rng)}, path)
        assert _refusal(lambda: pretrained.load(str(path), "resnet_tiny", net)).startswith(
            f"backbone.weights='{path}': not finite: {name}; "
        )
    report(
        "a file of weights with one NaN or infinity, at a random place of a random tensor",
        f"{trials}, in process",
        f"{trials} refused, the tensor named",
    )


def _weighted(state: dict) -> list[tuple[str, str]]:
    """(part, name) of all arrays of floating-point numbers that a training reads back."""
    parts = ((part, name) for part in ("params", "rest", "ema") for name in state.get(part, {}))
    return [(part, name) for part, name in parts if np.issubdtype(state[part][name].dtype, np.floating)]


def test_a_run_to_begin_with_that_has_a_number_that_is_none_is_refused(trained, tmp_path, counts, report, ends):
    rng, trials = np.random.default_rng(9), counts(2, 60)
    origin = Run.load(trained)
    state, begins = last_state(origin), ConfigDict(origin.config.to_dict())
    begins.init_from = str(tmp_path / "ruined")
    for trial in range(trials):
        ends()
        shutil.copytree(origin.workdir, tmp_path / "ruined")
        part, name = _weighted(state)[rng.integers(len(_weighted(state)))]
        ruined = state | {part: state[part] | {name: _ruined(state[part][name], rng)}}
        checkpoints = checkpoint.Checkpoints(tmp_path / "ruined")
        checkpoints.save(int(state["step"]) + 1, jax.tree.map(jax.device_put, ruined), {"accuracy": 2.0}, last=True)
        checkpoints.close()
        line = _refusal(lambda: methods.get("gradient").fit(Run(begins, tmp_path / f"run{trial}")))  # noqa: B023
        assert line == f"{tmp_path / 'ruined'}: {name} is not finite, nothing can begin with it"
        assert not (tmp_path / f"run{trial}").exists()
        shutil.rmtree(tmp_path / "ruined")
    report(
        "a checkpoint to begin with (`init_from`) that has one NaN or infinity, at a random place of a random array",
        f"{trials}, in process",
        f"{trials} refused, the array named, no work directory made",
    )


def test_parameters_with_a_number_that_is_none_are_never_saved(data_dir, tmp_path, monkeypatch, counts, report, ends):
    rng, trials = np.random.default_rng(10), counts(2, 80)
    config = load_config(CONFIG)
    config.data_dir, config.optimizer.ema_decay = data_dir, counts(0.0, 0.5)  # averages cost a compilation
    begun = Run(config, tmp_path / "begun")
    methods.get("gradient").fit(begun)
    kept, last = last_state(begun), config.num_steps + 2
    for trial in range(trials):
        ends()
        workdir = shutil.copytree(begun.workdir, tmp_path / f"run{trial}")
        part, name = _weighted(kept)[rng.integers(len(_weighted(kept)))]

        def ruins(state, *rest):
            state, metrics = real(state, *rest)  # noqa: B023 - called at once
            if int(state["step"]) == last:  # the last; its loss is that of the parameters before
                state[part][name] = jax.device_put(_ruined(state[part][name], rng))  # noqa: B023 - called at once
            return state, metrics

        longer = ConfigDict(config.to_dict())
        longer.num_steps = last
        run = Run(longer, workdir, allow_change=("num_steps",))
        model = model_of(run)
        real = model.step
        monkeypatch.setattr(model, "step", ruins)
        with pytest.raises(FloatingPointError, match=f"after step {last} {part}/{name} is not finite; this is not saved"):
            methods.get("gradient").fit(run)
        monkeypatch.undo()
        assert max(checkpoint.Checkpoints(workdir).manifests()) == config.num_steps and not run.done
        same_bytes(kept, last_state(Run.load(workdir)))
        shutil.rmtree(workdir)
    report(
        "one NaN or infinity in the parameters, statistics or averages before a save, at a random place of a random array",
        f"{trials}, in process",
        f"{trials} stopped in one line with the array, nothing saved, the checkpoint before as it was",
    )


def _outside(interval: str) -> list[float]:
    """Numbers beyond the ends of an interval, or at one that is not in it."""
    low, high = map(float, interval[1:-1].split(", "))
    out = [low - 1 if interval[0] == "[" else low] if np.isfinite(low) else []
    return out + ([high + 1 if interval[-1] == "]" else high] if np.isfinite(high) else [])


def test_numbers_of_configs_that_are_none_or_out_of_range_are_refused(data_dir, tmp_path, counts, report, ends):
    rng, cases, numbers = np.random.default_rng(11), [], 0
    configs = {path: load_config(path, "") for path in CONFIGS}
    for path, config in configs.items():
        for name, field, value in ranges.fields(config):
            interval = ranges.interval_of(field)
            if interval or any(True for _ in ranges.numbers_of(value)):
                numbers += 1
                bad = [np.nan, np.inf, -np.inf, *_outside(interval or "(-inf, inf)")]
                cases += [(path, name, value, wrong) for wrong in bad]
    trials, started = counts(60, len(cases)), counts(0, 15)
    chosen = [cases[i] for i in rng.permutation(len(cases))[:trials]]
    workdir, stored = tmp_path / "run", tmp_path / "stored"
    stored.mkdir()
    for path, name, value, wrong in chosen:
        ends()
        config = configs[path]
        config.data_dir = data_dir
        written = (value[:-1] + (wrong,) if value else (wrong,)) if isinstance(value, tuple) and not _pairs(value) else wrong
        with config.ignore_type():
            config.update_from_flattened_dict({name: written})
        line = _refusal(lambda: methods.get(config.method).fit(Run(config, workdir)))  # noqa: B023
        assert line.startswith(f"{name}={written}: use "), line
        (stored / "config.json").write_text(json.dumps(config.to_dict()))
        assert _refusal(lambda: Run.load(stored)).startswith(f"{stored / 'config.json'} cannot be used (")
        assert not workdir.exists() and os.listdir(stored) == ["config.json"]
        with config.ignore_type():
            config.update_from_flattened_dict({name: value})
    flat = [case for case in cases if case[0] == CONFIG and not isinstance(case[2], (tuple, type(None)))]
    for i in rng.permutation(len(flat))[:started]:
        ends()
        path, name, _, wrong = flat[i]
        fields = (f"--config.data_dir={data_dir}", f"--config.{name}={wrong}")
        status, text = _started("main", f"--config={path}", *fields, f"--workdir={workdir}")
        assert status == 1 and text.splitlines()[-1].startswith("main: error: ") and name in text.splitlines()[-1], text
        assert not workdir.exists()
    report(
        f"NaN, an infinity or a number out of range in one of the {numbers:,} numeric fields of the {len(CONFIGS)} configs",
        f"{trials:,} in process, {started} by `main`",
        f"{trials + started:,} refused in one line with the field, no work directory made; the same in the config.json of a run",
    )


def _pairs(value) -> bool:
    return any(isinstance(each, tuple) for each in value)
