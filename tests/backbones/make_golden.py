"""What timm computes, for test_parity.py: run where torch and timm are installed, JAX is not needed.

    python -m tests.backbones.make_golden                             # writes tests/backbones/golden; needs transformers, too
    python -m tests.backbones.make_golden --full=DIR [variant ...]    # published sizes with drawn weights, for full_parity.py

Every tensor is drawn from a seed made of its name, so that the files hold outputs only. Made with torch 2.14.1, timm 1.0.31 and
transformers 5.24.0.
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
    "vit_small_patch14_dinov2": ("vit_small_patch14_dinov2", 518),
    "vit_base_patch14_dinov2": ("vit_base_patch14_dinov2", 518),
    "vit_small_patch14_reg4_dinov2": ("vit_small_patch14_reg4_dinov2", 518),
    "vit_base_patch14_reg4_dinov2": ("vit_base_patch14_reg4_dinov2", 518),
    "vit_small_patch16_dinov3": ("vit_small_patch16_dinov3", 256),
    "vit_small_plus_patch16_dinov3": ("vit_small_plus_patch16_dinov3", 256),
    "vit_base_patch16_dinov3": ("vit_base_patch16_dinov3", 256),
    "convnext_tiny": ("convnext_tiny", 64),
}
# Networks of transformers in the layout of its files: options of `Dinov2Config`, and ours; with registers also their number.
LAYOUT_SIDE = 42
LAYOUTS = {
    "plain": ({}, {}),
    "swiglu": ({"use_swiglu_ffn": True}, {"swiglu": True}),
    "registers": ({"num_register_tokens": 4}, {"registers": 4}),
}
# Position embeddings that are resampled: places before the square grid, its side, and the new grid.
RESAMPLED = [(1, 5, (3, 7)), (1, 3, (8, 6)), (0, 5, (3, 7)), (0, 4, (2, 8))]


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
    from timm.models import _efficientnet_builder, convnext, densenet, efficientnet, eva, resnet, resnetv2, vision_transformer

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

    def dinov2(**options):
        # The 3x3 grid of its position embedding is that of the images of `SIZE`, filled with zeros to whole patches.
        width = {"num_classes": 0, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 1e-5}
        return vision_transformer.VisionTransformer(42, 14, dynamic_img_size=True, dynamic_img_pad=True, **width, **options)

    def dinov3(create):
        width = {"num_classes": 0, "global_pool": "token", "embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
        return create(img_size=SIZE, **width)

    def convnext_():
        net = convnext.ConvNeXt(num_classes=0, depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))
        net.stages = net.stages[:2]
        return net

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
        "vit_dinov2_tiny": dinov2(),
        "vit_reg4_dinov2_tiny": dinov2(reg_tokens=4, no_embed_class=True),
        "vit_dinov3_tiny": dinov3(eva.vit_small_patch16_dinov3),
        "vit_plus_dinov3_tiny": dinov3(eva.vit_small_plus_patch16_dinov3),
        "convnext_tiny_tiny": convnext_(),
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
    out |= {f"after/{name}": t for name, t in net.named_buffers() if t.is_floating_point() and name in net.state_dict()}
    return {name: np.float32(torch.as_tensor(t).detach().numpy()) for name, t in out.items()}


def layouts():
    """Of each of `LAYOUTS`: the shapes of a file that transformers writes, and the features that it computes of that file."""
    import tempfile

    import torch
    import transformers
    from safetensors import safe_open
    from safetensors.torch import save_file

    found = {}
    for name, (options, _) in LAYOUTS.items():
        family = "Dinov2WithRegisters" if "num_register_tokens" in options else "Dinov2"
        config = getattr(transformers, f"{family}Config")(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=LAYOUT_SIDE, **options
        )
        model = getattr(transformers, f"{family}Model")
        with tempfile.TemporaryDirectory() as folder:
            model(config).save_pretrained(folder)
            path = Path(folder) / "model.safetensors"
            with safe_open(path, framework="np") as file:
                shapes = {key: list(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118 - it is no dict
            save_file({key: torch.tensor(draw(key, shape)) for key, shape in shapes.items()}, path, metadata={"format": "pt"})
            net = model.from_pretrained(folder).eval()
        with torch.inference_mode():
            x = torch.tensor(images(2, (LAYOUT_SIDE, LAYOUT_SIDE)).transpose(0, 3, 1, 2))
            found[name] = {"shapes": shapes, "features": net(x).pooler_output.tolist()}
    return found


def resampled():
    """What timm makes of a position embedding that is drawn, for each of `RESAMPLED`."""
    import torch
    from timm.layers import resample_abs_pos_embed

    def one(before, side, grid):
        drawn = torch.tensor(draw("pos_embed", (1, before + side**2, 4)))
        return resample_abs_pos_embed(drawn, grid, [side, side], before).tolist()

    return [one(*case) for case in RESAMPLED]


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
    for name, value in {"published": shapes, "layouts": layouts(), "resampled": resampled()}.items():
        (GOLDEN / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(value, sort_keys=True).encode(), mtime=0))


def write_full(folder, names):
    """<folder>/<our name>.npz: `features` in evaluation, and `exact`, the same in float64."""
    import timm
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        theirs, side = PUBLISHED[name]
        pool = {"global_pool": "token"} if "dinov3" in name else {}  # the class token, as in the paper
        net = fill(timm.create_model(theirs, num_classes=0, **pool)).eval()
        x = torch.tensor(images(2, (side, side)).transpose(0, 3, 1, 2))
        with torch.inference_mode():
            np.savez(folder / f"{name}.npz", features=net(x).numpy(), exact=net.double()(x.double()).numpy())
        print(name, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", type=Path)
    parser.add_argument("names", nargs="*", default=list(PUBLISHED))
    arguments = parser.parse_args()
    write_full(arguments.full, arguments.names) if arguments.full else write_golden()
