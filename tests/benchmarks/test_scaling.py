"""What a step of more devices has more of, and the figures that are taken of a dry run."""

from benchmarks import scaling
from tests.conftest import load_config


def test_batch_and_queue_grow_with_the_devices():
    streams = {"member.data.streams.generated": 120, "member.data.streams.real": 8, "member.eval_batch": 128}
    config = load_config("configs/subtask1/taozi_moco.py", "")
    assert scaling.overrides(config, 1) == streams | {"member.objective.queue": 4992}  # as it is: 39 batches of 128
    assert scaling.overrides(config, 8) == {name: 8 * count for name, count in streams.items()} | {"member.objective.queue": 5120}
    assert scaling.overrides(load_config("configs/subtask2/fingerprint_net.py", ""), 2.0) == {
        "data.streams.generated": 64,
        "eval_batch": 256,
    }


def test_figures_of_a_dry_run():
    found = {
        "images a step": "64 of 256x256x1",
        "step: memory": "183.9 MiB a device of 74.51 GiB: fits; temporaries 1.0 MiB",
        "step: exchanges": "1 all-gather (65,792 B), 1 all-reduce (24.9 MiB)",
        "step: floor": "0.285 ms, by bytes (FLOPs 0.02 ms, bytes 0.285 ms); exchanges add 0.102 ms (26.3%) at 450 GB/s",
    }
    figures = "0.285 ms, by bytes | 1 all-gather (65,792 B), 1 all-reduce (24.9 MiB) | 0.102 ms | 26.3%"
    assert scaling.row(found) == f"64 | 183.9 MiB | {figures}"
    refused = {"images a step": "64 of 8x8x1", "step: memory": "does NOT fit: it needs 20 GiB"}
    assert scaling.row(refused) == "64 | does NOT fit: it needs 20 GiB |  |  |  | "
