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
import math
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


class Block(nn.Module):
    """A residual block of backbones/unet.py, scaled and shifted by the embedding."""

    def __init__(self, channels: int, width: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = groups(channels), conv(channels, width, 3)
        self.condition = nn.Linear(embedding, 2 * width)
        self.norm2, self.conv2 = groups(width), conv(width, width, 3)
        self.shortcut = conv(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """The map after the block."""
        scale, shift = self.condition(nn.functional.silu(embedding))[..., None, None].chunk(2, 1)
        y = self.norm2(self.conv1(nn.functional.silu(self.norm1(x))))
        return self.shortcut(x) + self.conv2(nn.functional.silu(y * (1 + scale) + shift))


class Attend(nn.Module):
    """Self-attention of all places of a map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.qkv, self.proj = heads, groups(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map after attention."""
        n, width, h, w = x.shape
        tokens = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).reshape(n, h * w, 3, self.heads, width // self.heads)
        found = nn.functional.scaled_dot_product_attention(*tokens.permute(2, 0, 3, 1, 4))
        return x + self.proj(found.transpose(1, 2).reshape(n, h * w, width)).transpose(1, 2).reshape(x.shape)


def groups(width: int) -> nn.GroupNorm:
    """Group normalisation as backbones/unet.py has it."""
    return nn.GroupNorm(math.gcd(width // 4, 32), width)


def conv(channels: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded as ours."""
    return nn.Conv2d(channels, width, size, stride, size // 2, bias=False)


class UNet(nn.Module):
    """The network of backbones/unet.py with the last convolution of a generator: images [N,1,H,W], times [N] -> [N,1,H,W]."""

    def __init__(self, widths: list[int], blocks: int, attended: int, heads: int) -> None:
        super().__init__()
        first, last, count = widths[0], widths[-1], len(widths)
        embedding = 4 * first
        self.time1, self.time2 = nn.Linear(first, embedding), nn.Linear(embedding, embedding)
        self.register_buffer("frequencies", 1000 * torch.exp(-math.log(10_000) * torch.arange(first // 2) / (first // 2)))

        def level(channels: list[int], i: int) -> nn.ModuleList:
            attends = i >= count - attended
            pairs = [[Block(each, widths[i], embedding), *([Attend(widths[i], heads)] if attends else [])] for each in channels]
            return nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

        self.stem, skips, wide = conv(1, first, 3), [first], first
        self.downs, self.halves = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            if i:
                self.halves.append(conv(wide, wide, 3, 2))
                skips.append(wide)
            self.downs.append(level([wide] + [width] * (blocks - 1), i))
            skips += [width] * blocks
            wide = width
        self.middle = nn.ModuleList([Block(last, last, embedding), Attend(last, heads), Block(last, last, embedding)])
        self.ups, self.doubles = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(count)):
            joined = []
            for _ in range(blocks + 1):
                joined.append(wide + skips.pop())
                wide = widths[i]
            self.ups.append(level(joined, i))
            if i:
                self.doubles.append(conv(wide, wide, 3))
        self.norm, self.last = groups(first), nn.Conv2d(first, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The velocity."""
        angles = time[:, None] * self.frequencies
        embedding = self.time2(nn.functional.silu(self.time1(torch.cat([angles.cos(), angles.sin()], 1))))

        def through(pair: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
            x = pair[0](x, embedding)
            return pair[1](x) if len(pair) > 1 else x

        x = self.stem(x)
        skips = [x]
        for i, level in enumerate(self.downs):
            if i:
                x = self.halves[i - 1](x)
                skips.append(x)
            for pair in level:
                x = through(pair, x)
                skips.append(x)
        x = self.middle[2](self.middle[1](self.middle[0](x, embedding)), embedding)
        for i, level in enumerate(self.ups):
            if i:
                x = self.doubles[i - 1](nn.functional.interpolate(x, scale_factor=2))
            for pair in level:
                x = through(pair, torch.cat([x, skips.pop()], 1))
        return self.last(nn.functional.silu(self.norm(x)))


def flow(
    size: int, batch: int, widths: list[int], blocks: int, attended: int, heads: int, parameters: int, steps: int = 0
) -> Callable[[], None]:
    """One step of rectified flow with Adam and averaged weights; `steps`: the batch is made by so many of Heun's method instead.

    `parameters` is how many ours has: another network is an error.
    """
    net = UNet(widths, blocks, attended, heads).to(DEVICE).to(memory_format=torch.channels_last)
    if (count := sum(p.numel() for p in net.parameters())) != parameters:
        raise ValueError(f"the peer has {count} parameters, ours {parameters}: another network")
    images = (torch.rand(batch, 1, size, size, device=DEVICE) * 2 - 1).contiguous(memory_format=torch.channels_last)

    def made() -> None:
        with torch.inference_mode():
            x = torch.randn_like(images)
            for i in range(steps):
                here, ahead = (torch.full((batch,), k / steps, device=DEVICE) for k in (i, i + 1))
                first = net(x, here)
                x = x + (first + net(x + first / steps, ahead)) / (2 * steps)

    if steps:
        net.eval()
        return made
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    averaged = [p.detach().clone() for p in net.parameters()]

    def step() -> None:
        z, time = torch.randn_like(images), torch.randn(batch, device=DEVICE).sigmoid()
        t = time[:, None, None, None]
        loss = nn.functional.mse_loss(net((1 - t) * z + t * images, time), images - z)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(averaged, [p.detach() for p in net.parameters()], 1e-3)

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


KINDS = {"classifier": classifier, "siamese": siamese, "flow": flow, "loader": loader}


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
