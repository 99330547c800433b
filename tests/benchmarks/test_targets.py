"""Every trained network of the configs is in the table, and the pages show what the files hold."""

import json

import pytest

from benchmarks import floor, target_peer, targets
from fingerprint_jax.runs.config import walk
from tests.conftest import CONFIGS, load_config

NETWORKS = {network.name: network for network in targets.networks()}
FIGURES = {
    "target": "1 x H100",
    "step: memory": "1.00 GiB a device of 74.51 GiB: fits; temporaries 512.0 MiB",
    "step: exchanges": "2 all-reduce (8.0 MiB)",
    "step: compiled in": "3.0 s (4.0 s of processors)",
    "step: floor": "2.5 ms, by bytes (FLOPs 0.5 ms, bytes 2.5 ms); exchanges add 0.1 ms (3.8%) at 450 GB/s",
    "prediction: memory": "2.00 GiB a device of 74.51 GiB: fits; temporaries 0 B",
}
ABOUT = {"backbone": "resnet50", "pixels": 224, "dtype": "bfloat16", "others": ["subtask1/other"]}


def test_every_network_that_a_config_trains_is_in_the_table():
    known = {network.config.backbone.name for network in NETWORKS.values()}
    for path in CONFIGS:
        if path.startswith("configs/subtask"):
            c = load_config(path, "")
            trained = [inner for inner in [c, *(v for _, v in walk(c) if hasattr(v, "get"))] if inner.get("num_steps", 0)]
            named = path.removeprefix("configs/").removesuffix(".py")
            assert {inner.backbone.name for inner in trained} <= known
            assert not trained or any(named in (name.split(" ")[0], *net.others) for name, net in NETWORKS.items()), path


def test_a_network_has_the_size_and_the_dtype_that_it_is_meant_for():
    moco, siamese, vote = (NETWORKS[name] for name in ("subtask1/taozi_moco", "subtask2/aimm_siamese", "subtask2/sdva_vote b2"))
    assert (moco.pixels, moco.dtype) == (224, "bfloat16") and (siamese.pixels, siamese.dtype) == (256, "float32")
    assert vote.config.backbone.name == "efficientnet_b2" and "subtask2/siamese_vote" in siamese.others


@pytest.mark.parametrize(
    ("streams", "devices", "expected"),
    [
        ({"a": 32}, 16, {"a": 32}),
        ({"a": 120, "b": 8}, 16, {"a": 112, "b": 16}),
        ({"a": 4, "b": 4}, 16, {"a": 16, "b": 16}),
        ({"a": 24, "b": 8}, 64, {"a": 64, "b": 64}),
    ],
)
def test_the_images_of_a_step_are_shared(streams, devices, expected):
    assert targets.shared(streams, devices) == expected


def test_a_row_says_what_a_dry_run_prints():
    assert targets.row("x", ABOUT, {"streams": {"a": 8, "b": 4}, "figures": FIGURES}) == (
        "| `x` | resnet50 | 224, bfloat16, 8+4 | 1.00 GiB | 2.5 ms, by bytes | 0.5 ms | 2 all-reduce (8.0 MiB) |"
        " 0.1 ms | 3.0 s, 4.0 s |"
    )
    assert "| XLA gave up |" in targets.row("x", ABOUT, {"streams": {"a": 8}, "failed": "XLA gave up"})


def test_what_does_not_fit_names_the_least_machine():
    large = FIGURES | {"step: memory": "99.00 GiB a device of 74.51 GiB: does NOT fit; temporaries 98.0 GiB"}
    found = {"streams": {"a": 8}, "figures": large}
    assert not targets.fits(found) and "nor on 256 of them" in targets.row("x", ABOUT, found)
    found["least"] = {"target": "h100:2", "streams": {"a": 8}, "figures": FIGURES}
    assert "step 99.00 GiB, does not fit; `h100:2` is the least: 1.00 GiB |" in targets.row("x", ABOUT, found)


def test_ours_is_compared_with_the_peer():
    ours = {"bytes": 2**30, "kernels": 90, "temporaries": 2**29, "flops": 1e12, "seconds": 30.0}
    peer = {"bytes": 2**31, "kernels": 100, "temporaries": 2**30, "flops": 1e12, "seconds": 20.0}
    text = target_peer.row("resnet50/tpu-v5e/128/bfloat16", {"ours": ours, "peer": peer})
    assert "| 1.00 GiB | 0.500 | 90 | 0.900 | 0.50 GiB | 0.500 | 1e+12 | 1.000 | 0.26, peer 0.52 | 30, peer 20 |" in text


@pytest.mark.parametrize("module", [targets, target_peer])
def test_the_page_shows_the_results_that_are_kept(module):
    if module.OUTPUT.exists():
        text = module.tables(json.loads(module.OUTPUT.read_text()))
        assert f"{module.MARKS[0]}\n{text}\n{module.MARKS[1]}" in module.DOCS.read_text(), f"python -m {module.__name__} writes it"


def test_a_device_without_figures_has_no_floor():
    with pytest.raises(ValueError, match="the device is 'cpu', of which .* has no figures"):
        floor.row("siamese_cnn_tiny", 4, 48, "float32", 1)
