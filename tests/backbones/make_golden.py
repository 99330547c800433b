"""What timm computes, for test_parity.py: run where torch and timm are installed, JAX is not needed.

    python -m tests.backbones.make_golden               # writes tests/backbones/golden
    python -m tests.backbones.make_golden --full=DIR    # published sizes with drawn weights, for full_parity.py

Every tensor is drawn from a seed made of its timm name, so that the files hold outputs only. Made with torch 2.14.1, timm 1.0.31.
"""

import argparse
import gzip
import json
import math
import re
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
SIZE = (32, 40)
CLASSES = 5
# Our variant -> timm's, and the side of the image for the features.
PUBLISHED = {
    "resnet18": ("resnet18", 64),
    "resnet50": ("resnet50", 64),
    "resnet50v2": ("resnetv2_50", 64),
    "densenet121": ("densenet121", 64),
    "densenet161": ("densenet161", 64),
    "efficientnet_b0": ("efficientnet_b0", 64),
    "efficientnet_b1": ("efficientnet_b1", 64),
    "efficientnet_b2": ("efficientnet_b2", 64),
    "efficientnet_lite0": ("efficientnet_lite0", 64),
    "tf_efficientnet_lite0": ("tf_efficientnet_lite0", 64),
    "mobilenet_v2": ("mobilenetv2_100", 64),
    "vit_tiny_patch16": ("vit_tiny_patch16_224", 224),
    "vit_small_patch16": ("vit_small_patch16_224", 224),
    "vit_base_patch16": ("vit_base_patch16_224", 224),
}


def draw(name, shape):
    """Weights of a tensor by its timm name: float32, He's scale for kernels, statistics near those of a unit normal."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) in (2, 4):
        values = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
    else:
        values = rng.normal(0, 0.1, shape)
    return values.astype(np.float32)


def images(n, size):
    """[N,H,W,3] float32."""
    return np.random.default_rng(7).normal(size=(n, *size, 3)).astype(np.float32)


def head(width):
    """Kernel [D,CLASSES] and bias of the classifier."""
    return draw("classifier.weight", (CLASSES, width)).T, draw("classifier.bias", (CLASSES,))


def tiny():
    """The tiny variants, of timm's own classes."""
    import functools

    import torch
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models import _efficientnet_builder, densenet, efficientnet, resnet, resnetv2, vision_transformer

    def resnet_(block, widths, depths):
        net = resnet.ResNet(block, depths, num_classes=0, channels=widths)
        # timm's stem is 64 wide whatever the stages are.
        net.conv1 = torch.nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        net.bn1 = torch.nn.BatchNorm2d(widths[0])
        net.layer3 = net.layer4 = torch.nn.Identity()
        for name, stage in resnet.make_blocks((block, block), widths, depths, widths[0])[0]:
            setattr(net, name, stage)
        return net

    def efficientnet_(stages, **options):
        return efficientnet.EfficientNet(
            _efficientnet_builder.decode_arch_def([[stage] for stage in stages]),
            num_classes=0,
            num_features=24,
            stem_size=8,
            fix_stem=True,
            round_chs_fn=lambda width: width,
            **options,
        )

    small = ("ds_r1_k3_s1_e1_c8", "ir_r2_k5_s2_e2_c12")
    return {
        "resnet_tiny": resnet_(resnet.BasicBlock, (8, 16), (1, 1)),
        "resnet_bottleneck_tiny": resnet_(resnet.Bottleneck, (4, 8), (2, 1)),
        "resnetv2_tiny": resnetv2.ResNetV2(
            (2, 1),
            (32, 64),
            num_classes=0,
            stem_chs=8,
            act_layer=torch.nn.ReLU,
            conv_layer=create_conv2d,
            norm_layer=BatchNormAct2d,
        ),
        "densenet_tiny": densenet.DenseNet(4, (2, 2), num_classes=0),
        "efficientnet_tiny": efficientnet_([stage + "_se0.25" for stage in small], act_layer=torch.nn.SiLU),
        "tf_efficientnet_lite_tiny": efficientnet_(
            small,
            act_layer=torch.nn.ReLU6,
            pad_type="same",
            norm_layer=functools.partial(torch.nn.BatchNorm2d, eps=1e-3),
        ),
        "mobilenet_v2_tiny": efficientnet_(("ds_r1_k3_s1_c8", "ir_r2_k3_s2_e4_c12"), act_layer=torch.nn.ReLU6),
        "vit_tiny": vision_transformer.VisionTransformer(SIZE, 8, num_classes=0, embed_dim=16, depth=2, num_heads=2),
    }


def fill(net):
    """The net with drawn weights."""
    import torch

    state = net.state_dict()
    state = {name: torch.tensor(draw(name, t.shape)) if t.is_floating_point() else t for name, t in state.items()}
    net.load_state_dict(state)
    return net


def compute(net):
    """Evaluation features and logits, norms of the gradients of a training loss, statistics after that step and of how many."""
    import torch

    x = torch.tensor(images(4, SIZE).transpose(0, 3, 1, 2))
    features = fill(net).eval()(x)
    kernel, bias = (torch.tensor(a.copy()) for a in head(features.shape[1]))
    out = {"features": features, "logits": features @ kernel + bias}
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, x, name=name: out.update({f"count/{name}": x[0][:, 0].numel()}))
    loss = torch.nn.functional.cross_entropy(net.train()(x) @ kernel + bias, torch.arange(4))
    loss.backward()
    out |= {"loss": loss} | {f"gradient/{name}": p.grad.double().norm() for name, p in net.named_parameters()}
    out |= {f"after/{name}": t for name, t in net.named_buffers() if t.is_floating_point()}
    return {name: np.float32(torch.as_tensor(t).detach().numpy()) for name, t in out.items()}


def write_golden():
    """The files of golden/."""
    import timm

    GOLDEN.mkdir(exist_ok=True)
    for name, net in tiny().items():
        np.savez_compressed(GOLDEN / f"{name}.npz", **compute(net))
    shapes = {}
    for name, (theirs, _) in PUBLISHED.items():
        state = timm.create_model(theirs).state_dict()
        shapes[name] = {key: list(t.shape) for key, t in state.items() if not re.match(r".*num_batches_tracked", key)}
    (GOLDEN / "published.json.gz").write_bytes(gzip.compress(json.dumps(shapes, sort_keys=True).encode(), mtime=0))


def write_full(folder):
    """<folder>/<our name>.npz: `features` in evaluation, and `exact`, the same in float64."""
    import timm
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for name, (theirs, side) in PUBLISHED.items():
        net = fill(timm.create_model(theirs, num_classes=0)).eval()
        x = torch.tensor(images(2, (side, side)).transpose(0, 3, 1, 2))
        with torch.inference_mode():
            np.savez(folder / f"{name}.npz", features=net(x).numpy(), exact=net.double()(x.double()).numpy())
        print(name, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", type=Path)
    full = parser.parse_args().full
    write_full(full) if full else write_golden()
