"""Every feature, and how they are extracted: cached, in processes, after a filter."""

import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from fingerprint_jax import features
from fingerprint_jax.features import enhance, frequency, pixels, residual, texture
from fingerprint_jax.runs.run import Run
from tests.conftest import ROOT, load_config
from tests.features import worker

NAMES = sorted(texture.FEATURES | frequency.FEATURES | pixels.FEATURES | residual.FEATURES)


def _images(count, height, width):
    rng = np.random.default_rng(0)
    smooth = 40 * np.sin(np.arange(height)[:, None] / 3 + np.arange(width) / 5) + 100
    return np.clip(smooth + rng.normal(0, 15, (count, height, width)), 0, 255).astype(np.uint8)[..., None]


@pytest.fixture
def run(data_dir, tmp_path):
    config = load_config("configs/subtask2/residual_svm.py")
    config.data_dir = data_dir
    return Run(config, tmp_path / "run")


def _count(monkeypatch, name="pixels"):
    calls, function = [], pixels.FEATURES[name]

    def counted(images, *, size: int = 0):
        calls.append(len(images))
        return function(images, size=size)

    monkeypatch.setitem(pixels.FEATURES, name, counted)
    return calls


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(18, 18), (20, 27)])
def test_a_row_is_finite_and_of_its_image_alone(name, height, width):
    images = _images(3, height, width)
    images[1] = 77
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = features.get(name)(images)
        assert found.dtype == np.float32 and len(found) == 3 and found[0].size > 1 and np.isfinite(found).all()
        for i in range(3):
            np.testing.assert_array_equal(features.get(name)(images[i : i + 1])[0], found[i])
    assert not np.array_equal(found[0], found[2])


def test_larger_images_are_averaged_down_and_others_stay():
    images = _images(2, 18, 12)
    means = images[..., 0].reshape(2, 6, 3, 6, 2).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(features.get("images", size=6)(images), means, rtol=1e-5)
    for size in (0, 12, 64):
        np.testing.assert_array_equal(features.get("images", size=size)(images), images[..., 0] / np.float32(255))


def test_unknown_names_options_and_filters_are_refused_in_a_line():
    with pytest.raises(ValueError, match="features.name='colour' is unknown; known: network, gabor, glcm, images, lbp"):
        features.get("colour")
    with pytest.raises(ValueError, match="features.steps is no option of pixels; known: enhance, size"):
        features.get("pixels", steps=(1.0,))
    with pytest.raises(
        ValueError, match="features.enhance='sobel' is unknown; known: none, gaussian, laplacian, hessian, bilateral"
    ):
        features.get("pixels", enhance="sobel")
    features.get("pixels", steps=None)


@pytest.mark.parametrize("filter", [name for name in enhance.FILTERS if name != "none"])
def test_a_filter_goes_over_the_images_before(filter):
    images = _images(2, 18, 18)
    np.testing.assert_array_equal(features.get("pixels", enhance=filter)(images), pixels.pixels(enhance.enhance(images, filter)))
    np.testing.assert_array_equal(features.get("pixels", enhance="none")(images), pixels.pixels(images))


def test_features_are_kept_by_content_rows_name_and_options(run, tmp_path, monkeypatch):
    calls = _count(monkeypatch)
    rows = run.rows("train_generated")
    monkeypatch.setattr(features, "BLOCK", 16)

    def extract(selection=slice(None), **options):
        return features.extract(run, rows.take(np.arange(len(rows))[selection]), "pixels", options, tmp_path, 1)

    first = extract()
    assert sum(calls) == len(rows) and max(calls) == 16
    np.testing.assert_array_equal(first, run.source.images(rows.index).reshape(len(rows), -1) / np.float32(255))
    np.testing.assert_array_equal(extract(), first)
    np.testing.assert_array_equal(extract(size=0, enhance="none"), first)  # the defaults
    np.testing.assert_array_equal(extract(size=None), first)
    assert sum(calls) == len(rows), "computed again"
    for other in ({"size": 4}, {"enhance": "gaussian"}, {"selection": slice(5)}, {"selection": slice(None, None, -1)}):
        before = sum(calls)
        assert not np.array_equal(extract(**other), first)
        assert sum(calls) > before, other
    monkeypatch.setattr(run.source, "fingerprints", {"train_generated": "other"})
    before = sum(calls)
    extract()
    assert sum(calls) > before


def test_a_damaged_file_is_computed_again_and_damaged_data_are_not_kept(run, tmp_path, monkeypatch):
    calls = _count(monkeypatch)
    rows = run.rows("heldout")
    first = features.extract(run, rows, "pixels", {}, tmp_path, 1)
    (path,) = tmp_path.glob("pixels-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(features.extract(run, rows, "pixels", {}, tmp_path, 1), first)
    assert sum(calls) == 2 * len(rows)
    path.unlink()
    monkeypatch.setattr(run.source, "damaged", {0})
    features.extract(run, rows, "pixels", {}, tmp_path, 1)
    assert not path.exists()


def test_processes_change_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 10)
    rows = run.rows("train_generated")
    one, two = (features.extract(run, rows, "texture", {"enhance": "bilateral"}, tmp_path / str(n), n) for n in (1, 2))
    assert one.shape == (len(rows), 47) and len(rows) > 60
    assert one.tobytes() == two.tobytes()


def test_processes_are_spawned_without_jax_where_they_are_worth_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(pixels.FEATURES, "where", worker.where)
    monkeypatch.setattr(features, "BLOCK", 4)
    monkeypatch.setattr(features.joblib, "cpu_count", lambda: 2)
    rows = run.rows("heldout")
    process, jax = features.extract(run, rows, "where", {"enhance": "gaussian"}, tmp_path).T
    assert os.getpid() not in process and len(set(process)) <= 2
    assert not jax.any()  # a fork would have it: it is imported here
    assert features.extract(run, rows, "where", {}, tmp_path)[0].tolist() == [os.getpid(), 1]
    monkeypatch.setattr(features, "BLOCK", len(rows))
    assert features.extract(run, rows, "where", {"enhance": "hessian"}, tmp_path)[0, 0] == os.getpid()  # one block


def test_an_error_in_a_process_is_the_same_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 8)
    with pytest.raises(ValueError, match="features.bins=99: use at most 24 for images of 48x48 pixels"):
        features.extract(run, run.rows("heldout"), "radial_spectrum", {"bins": 99, "enhance": "gaussian"}, tmp_path, 2)
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_processes_do_not_import_the_main_module_again_and_end_with_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\n"
        "import numpy as np\n"
        "print('imported', flush=True)\n"
        "from fingerprint_jax import features\n"
        "from tests.features import worker\n"
        "if __name__ == '__main__':\n"
        "    main = sys.modules['__main__']\n"
        "    parts = features._in_processes(worker.where, iter([np.zeros((1, 8, 8, 1), np.uint8)] * 9), 2)\n"
        "    print(next(parts)[0, 0] != os.getpid(), sys.modules['__main__'] is main, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # It waits until nobody can write any more: a worker that lives on holds it up.
    done = subprocess.run([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=30)
    assert done.stdout.decode().split() == ["imported", "True", "True"], done.stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_is_for_the_parent_alone(number, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import itertools, os, signal\n"
        "import numpy as np\n"
        "from fingerprint_jax import features\n"
        "from tests.features import worker\n"
        "if __name__ == '__main__':\n"
        f"    signal.signal({int(number)}, lambda *_: print('asked'))\n"
        "    parts = features._in_processes(worker.where, itertools.repeat(np.zeros((1, 8, 8, 1), np.uint8)), 2)\n"
        "    started = set()\n"
        "    while len(started) < 2:\n"
        "        started.add(next(parts)[0, 0])\n"
        f"    os.killpg(0, {int(number)})\n"
        "    found = [next(parts) for _ in range(50)]\n"
        "    parts.close()\n"
        "    print('ended')\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, timeout=30, start_new_session=True)
    assert done.stdout.decode().split() == ["asked", "ended"] and not done.stderr, done.stderr.decode()
