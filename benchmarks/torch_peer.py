"""PyTorch's side of benchmarks/backbones.py: reads requests from stdin, one JSON object a line, answers on stdout.

{"name", "size", "batch", "train"}   builds a net, answers {}
{"steps": N}                         runs it, answers {"seconds": s}

It works only between a request and its answer, so that the two sides never share the cores. Needs torch and timm, not JAX.
"""

import json
import sys
import time

import timm
import torch
from torch import nn

TIMM = {
    "resnet50v2": "resnetv2_50",
    "mobilenet_v2": "mobilenetv2_100",
    "vit_tiny_patch16": "vit_tiny_patch16_224",
    "vit_small_patch16": "vit_small_patch16_224",
    "vit_base_patch16": "vit_base_patch16_224",
}


def siamese_cnn(classes: int) -> nn.Module:
    """The small CNN of backbones/siamese_cnn.py."""
    widths = (1, 16, 32, 64, 128)
    convs = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Conv2d(a, b, 3), nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*convs, nn.Flatten(), nn.LazyLinear(256), nn.Linear(256, classes))


def build(name: str, size: int) -> nn.Module:
    """A net of one input channel and two classes."""
    if name == "siamese_cnn":
        return siamese_cnn(2)
    options = {"img_size": size} if name.startswith("vit") else {}
    return timm.create_model(TIMM.get(name, name), in_chans=1, num_classes=2, **options)


def prepare(name: str, size: int, batch: int, train: bool):
    """A function that runs one step, of training (SGD with momentum) or of inference."""
    torch.manual_seed(0)
    net = build(name, size)
    images, labels = torch.rand(batch, 1, size, size), torch.arange(batch) % 2
    net(images)  # makes the lazy layer
    if not train:
        net.eval()

        def infer():
            with torch.inference_mode():
                net(images)

        return infer
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def main():
    """Answers until stdin ends."""
    print(json.dumps({"torch": torch.__version__, "timm": timm.__version__, "threads": torch.get_num_threads()}), flush=True)
    step = None
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        if "name" in request:
            step = prepare(**request)
        elif step is not None:
            start = time.perf_counter()
            for _ in range(request["steps"]):
                step()
            answer["seconds"] = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
