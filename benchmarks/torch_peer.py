"""PyTorch's side of the benchmarks: reads requests from stdin, one JSON object a line, answers on stdout.

{"make": KEY, "kind": KIND, ..options}  builds what KIND, a function of KINDS, does: {}
{"run": KEY, "steps": N}                runs it, at first compiles: {"seconds": s}
{"forget": true}                        drops all that was made: {}

What fails is answered as {"error": text}. It works only between a request and its answer, so that the two sides never share the
cores. Needs torch, timm and Pillow, not JAX.
"""

# pyright: reportMissingImports=false

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TIMM = {
    "resnet50v2": "resnetv2_50",
    "mobilenet_v2": "mobilenetv2_100",
    "vit_tiny_patch16": "vit_tiny_patch16_224",
    "vit_small_patch16": "vit_small_patch16_224",
    "vit_base_patch16": "vit_base_patch16_224",
}


def siamese_cnn(outputs: int | None) -> nn.Module:
    """The small CNN of backbones/siamese_cnn.py; without `outputs` its features."""
    widths = (1, 16, 32, 64, 128)
    convs = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Conv2d(a, b, 3), nn.ReLU(), nn.MaxPool2d(2))]
    head = [nn.Linear(256, outputs)] if outputs else []
    return nn.Sequential(*convs, nn.Flatten(), nn.LazyLinear(256), *head)


def build(name: str, size: int, classes: int) -> nn.Module:
    """A net of one input channel."""
    if name == "siamese_cnn":
        return siamese_cnn(classes)
    options = {"img_size": size} if name.startswith("vit") else {}
    return timm.create_model(TIMM.get(name, name), in_chans=1, num_classes=classes, **options)


class Trained:
    """A net on the device and its optimizer: SGD with momentum, or Adam in one kernel."""

    def __init__(
        self, net: nn.Module, images: torch.Tensor, *, adam: bool, compiled: bool, channels_last: bool, dtype: str
    ) -> None:
        form = torch.channels_last if channels_last else torch.contiguous_format
        self.images = images.to(DEVICE).to(memory_format=form)
        net = net.to(DEVICE)
        net(self.images)  # makes the lazy layer
        self.net = net.to(memory_format=form)
        self.call = torch.compile(self.net) if compiled else self.net
        parameters = self.net.parameters()
        self.optimizer = torch.optim.Adam(parameters, 1e-4, fused=True) if adam else torch.optim.SGD(parameters, 1e-3, momentum=0.9)
        # As ours: parameters float32, the arithmetic of the network in `dtype`.
        self.cast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        """Of the network, float32."""
        with self.cast:
            out = self.call(images)
        return out.float()

    def update(self, loss: torch.Tensor) -> None:
        """A step against the gradient of a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def classifier(
    name: str,
    size: int,
    batch: int,
    train: bool = True,
    classes: int = 2,
    adam: bool = False,
    compiled: bool = False,
    channels_last: bool = False,
    dtype: str = "float32",
) -> Callable[[], None]:
    """One step of training with cross-entropy, or of inference, on images that lie on the device."""
    images, labels = torch.rand(batch, 1, size, size), (torch.arange(batch) % classes).to(DEVICE)
    options = {"adam": adam, "compiled": compiled, "channels_last": channels_last, "dtype": dtype}
    side = Trained(build(name, size, classes), images, **options)
    if not train:
        side.net.eval()

        def infer() -> None:
            with torch.inference_mode():
                side.outputs(side.images)

        return infer
    return lambda: side.update(nn.functional.cross_entropy(side.outputs(side.images), labels))


def siamese(size: int, pairs: int, compiled: bool = False, dtype: str = "float32") -> Callable[[], None]:
    """The published loop: a batch of pairs, half positive, both images of each encoded, contrastive loss of margin 1."""
    images, same = torch.rand(2 * pairs, 1, size, size), (torch.arange(pairs) % 2 == 0).to(DEVICE)
    side = Trained(siamese_cnn(None), images, adam=True, compiled=compiled, channels_last=True, dtype=dtype)

    def step() -> None:
        # One forward pass for both images of a pair, not two: the weights are the same.
        embedding = nn.functional.normalize(side.outputs(side.images), dim=1)
        distance = (embedding[:pairs] - embedding[pairs:]).square().sum(1).clamp_min(1e-12).sqrt()
        side.update(torch.where(same, distance**2, (1 - distance).clamp_min(0) ** 2).mean())

    return step


class Folder(Dataset):
    """The PNG files below a folder as uint8 [1,H,W], and the number of the class folder."""

    def __init__(self, folder: str) -> None:
        self.files = sorted(Path(folder).rglob("*.png"))
        names = sorted({path.parent.name for path in self.files})
        self.labels = [names.index(path.parent.name) for path in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[i]) as image:
            return torch.from_numpy(np.array(image.convert("L"))[None]), self.labels[i]


def loader(folder: str, batch: int, workers: int) -> Callable[[], None]:
    """One epoch of shuffled batches: at its end no worker has anything left to read ahead."""
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    data = DataLoader(Folder(folder), batch, shuffle=True, drop_last=True, **options)

    def epoch() -> None:
        for _ in data:
            pass

    return epoch


KINDS = {"classifier": classifier, "siamese": siamese, "loader": loader}


def answer(request: dict, made: dict) -> dict:
    """The answer to a request."""
    if "forget" in request:
        made.clear()
        gc.collect()
        torch.compiler.reset()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
        return {}
    if "make" in request:
        torch.manual_seed(0)
        key, kind = request.pop("make"), request.pop("kind")
        made[key] = KINDS[kind](**request)
        return {}
    return timed(made[request["run"]], request["steps"])


def timed(step: Callable[[], None], steps: int) -> dict:
    """Seconds of so many steps."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start}


def main() -> None:
    """Answers until stdin ends."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    # XLA uses TF32 and picks its convolutions by trying them, too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    print(json.dumps({"torch": torch.__version__, "timm": timm.__version__, "threads": cores}), flush=True)
    made = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), made)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
