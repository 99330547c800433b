"""A membership run on images whose names are HTML, an attribution run, and readers of a page."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fingerprint_jax import evaluate, methods
from fingerprint_jax.data import packing, phantom
from fingerprint_jax.runs.run import Run
from tests.conftest import fit, load_config
from tests.test_evaluate import run_binary

HOSTILE = "<img src=x onerror=alert(1)>&\"'"


@pytest.fixture(scope="package")
def membership_data(tmp_path_factory):
    """Subtask 1 with references, 48 px; every file name would be a picture that is not there, if a page did not escape it."""
    root = tmp_path_factory.mktemp("hostile")
    splits = phantom.subtask1(seed=0, size=48, leak=1.0, real=20, generated=40, unknown=20, reference=30)
    phantom.write(root / "images", "subtask1", splits, seed=0)
    for path in list((root / "images").rglob("*.png")):
        path.rename(path.with_name(HOSTILE + path.name))
    images = root / "images"
    packing.pack("subtask1", str(root / "data"), str(images / "train"), str(images / "test"), str(images / "reference"))
    return str(root / "data")


@pytest.fixture(scope="package")
def membership(membership_data, tmp_path_factory):
    return fit("configs/subtask1/aimm_siamese.py", membership_data, tmp_path_factory.mktemp("m") / f"run {HOSTILE}")


@pytest.fixture(scope="package")
def other_membership(membership_data, tmp_path_factory):
    config = load_config("configs/subtask1/aimm_siamese.py")
    config.data_dir, config.seed = membership_data, 1
    workdir = tmp_path_factory.mktemp("other") / "run"
    methods.get(config.method).fit(Run(config, workdir))
    return Run.load(workdir)


@pytest.fixture(scope="package")
def attribution(data_dir, tmp_path_factory):
    return fit("configs/quickstart.py", data_dir, tmp_path_factory.mktemp("a") / "run")


def report(run: Run, split: str, *flags: str) -> str:
    """The page that the binary writes."""
    run_binary(evaluate, f"--workdir={run.workdir}", f"--split={split}", "--report", *flags)
    return (run.workdir / "report" / "index.html").read_text(encoding="utf-8")


def pictures(page: str) -> list[np.ndarray]:
    """Every data URI of a page, decoded."""
    found = re.findall(r"data:[^;\"]*;base64,([^\"']*)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


class Elements(HTMLParser):
    """`tags` [(name, attributes)] and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else data

    def all(self, tag: str) -> list[dict]:
        """Attributes of every element of a name."""
        return [attributes for name, attributes in self.tags if name == tag]
