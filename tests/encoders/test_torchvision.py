"""torchvision: encoders give what the plain classifiers compute, with nothing but the head left."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from mmtransfer.encoders.base import Encoder, build_encoder
from mmtransfer.encoders.torchvision import TorchvisionEncoder
from mmtransfer.fusion.base import build_fusion
from mmtransfer.model import TransferModel
from mmtransfer.tasks.base import build_task
from mmtransfer.testing import check_encoder
from mmtransfer.training.options import TrainingOptions
from mmtransfer.training.run import build_model, run
from mmtransfer.transfer.base import build_strategy

Maker = Callable[..., bytes]
SIZE = 64
#: the plain model's last feature map, where it is not what its `avgpool` reads
MAPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "densenet121": lambda m, x: m.features(x).relu(),
    "mobilenet_v2": lambda m, x: m.features(x),
    "mnasnet0_5": lambda m, x: m.layers(x),
    "squeezenet1_1": lambda m, x: m.features(x),
    "shufflenet_v2_x0_5": lambda m, x: captured(m, m.conv5, x)[1],
}
NAMES = [
    *MAPS,
    "alexnet",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "swin_t",
]


def captured(model: nn.Module, part: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of one part while the model runs."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = part.register_forward_hook(lambda m, given, out: seen.append((given[0].clone(), out)))
    model(x)
    handle.remove()
    return seen[0]


def plain(name: str, size: int = SIZE, **options: Any) -> Any:
    """torchvision's own model in eval mode, its batch norms in use."""
    torch.manual_seed(0)
    sizes = {"image_size": size} if name.startswith("vit") else {}
    model = models.get_model(name, weights=None, **sizes, **options)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
    """Lets torchvision's downloads give the weights of a model instead."""

    def give(model: nn.Module) -> None:
        def load(url: str, **options: Any) -> dict[str, Tensor]:
            assert options["weights_only"]
            assert options["check_hash"]
            return dict(model.state_dict())

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)

    return give


def assert_close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 1e-3
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_map_is_that_of_the_plain_model_at_every_cut(
    name: str, downloads: Callable[[nn.Module], None]
) -> None:
    model = plain(name)
    downloads(model)
    encoder = build_encoder(f"torchvision:{name}:DEFAULT?size={SIZE}").eval()
    assert encoder.pretrained
    covered = [id(p) for stage in encoder.stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))
    assert list(encoder.cuts) == list(range(1, len(encoder.stages)))
    assert len(encoder.stages) >= 5
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        read = MAPS.get(name) or (lambda m, x: captured(m, m.avgpool, x)[0])
        expected = read(model, x).flatten(2).transpose(1, 2)
        assert_close(encoder(x).tokens, expected)
        for depth in encoder.cuts:
            activations = encoder.below(depth, pixels=x)
            before = activations.tokens.clone()
            assert_close(encoder.above(depth, activations).tokens, expected)
            assert torch.equal(activations.tokens, before), f"cut {depth} changes its input"


@pytest.mark.parametrize("name", ["alexnet", "convnext_tiny", "mobilenet_v3_small", "resnet18"])
def test_the_penultimate_vector_is_what_the_last_layer_reads(
    name: str, downloads: Callable[[nn.Module], None]
) -> None:
    model = plain(name)
    downloads(model)
    encoder = build_encoder(f"torchvision:{name}:DEFAULT?size={SIZE}&layer=penultimate").eval()
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = captured(model, last, x)[0][:, None]
        assert encoder.width == last.in_features
        assert_close(encoder(x).tokens, expected)
        for depth in encoder.cuts:
            assert_close(encoder.above(depth, encoder.below(depth, pixels=x)).tokens, expected)


def test_vgg16_has_13_convolutions_and_on_demand_its_dense_layers() -> None:
    with torch.device("meta"):  # shapes only
        base, dense = (TorchvisionEncoder("vgg16", layer=n) for n in ("map", "penultimate"))
        tokens = base(torch.zeros(1, 3, 224, 224)).tokens
    assert (len(base.stages), tokens.shape) == (13, (1, 49, 512))
    assert (len(dense.stages), dense.width) == (15, 4096)
    assert not any(isinstance(m, nn.Linear) for m in base.modules())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnasnet0_5", {}),
        ("shufflenet_v2_x0_5", {"pool": "flatten"}),
        ("squeezenet1_1", {"layer": "penultimate"}),
        ("mobilenet_v3_small", {"pool": "mean", "layer": "penultimate"}),
    ],
)
def test_the_contract_is_kept(name: str, options: dict[str, Any], picture: Maker) -> None:
    torch.manual_seed(0)
    encoder = TorchvisionEncoder(name, size=40, **options)
    check_encoder(encoder, [picture(0), picture(1, (90, 30)), picture(2, (33, 70))])


def test_a_vit_gives_tokens_or_its_class_token_and_grows_to_another_size(
    downloads: Callable[[nn.Module], None],
) -> None:
    model = plain("vit_b_32")
    downloads(model)
    first = build_encoder(f"torchvision:vit_b_32:DEFAULT?size={SIZE}&pool=first").eval()
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        tokens = captured(model, model.encoder, x)[1]
        assert_close(first(x).tokens, tokens[:, :1])
        for depth in (1, 12):
            assert_close(first.above(depth, first.below(depth, pixels=x)).tokens, tokens[:, :1])
        first.pool = "none"
        assert_close(first(x).tokens, tokens)
    covered = [id(p) for stage in first.stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, first.parameters()))
    larger = build_encoder("torchvision:vit_b_32:DEFAULT?size=160")
    assert larger(torch.zeros(1, 3, 160, 160)).tokens.shape == (1, 26, 768)
    # The class token's position is no place in the picture: it stays.
    position = larger.stages[0][0].pos_embedding
    assert torch.equal(position[:, 0], first.stages[0][0].pos_embedding[:, 0])


def test_the_pools_are_views_of_the_same_map() -> None:
    torch.manual_seed(0)
    encoder = TorchvisionEncoder("resnet18", size=SIZE, pool="flatten").eval()
    assert encoder.width == 4 * 512
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        flat = encoder(x).tokens
        encoder.pool = "none"
        tokens = encoder(x).tokens
        encoder.pool = "mean"
        mean = encoder(x).tokens
    assert tokens.shape == (2, 4, 512)
    assert torch.equal(flat, tokens.flatten(1)[:, None])
    assert_close(mean[:, 0], tokens.mean(1))


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_pictures_go_through_the_transforms_of_the_weights(weights: str, picture: Maker) -> None:
    encoder = TorchvisionEncoder("mobilenet_v2", weights)
    member = models.MobileNet_V2_Weights[weights]
    value = picture(0, (300, 260))
    pixels = pickle.loads(pickle.dumps(encoder.collate))([value])["pixels"]
    assert torch.equal(pixels[0], member.transforms()(Image.open(io.BytesIO(value))))
    smaller = TorchvisionEncoder("mobilenet_v2", weights, size=112)
    assert smaller.collate([value])["pixels"].shape == (1, 3, 112, 112)
    assert smaller.preset.resize_size == [member.transforms().resize_size[0] // 2]


def test_preprocessing_is_part_of_the_fingerprint() -> None:
    encoders = [
        TorchvisionEncoder("mobilenet_v2", weights, size=size)
        for weights, size in (("IMAGENET1K_V1", 224), ("IMAGENET1K_V2", 224), ("DEFAULT", 96))
    ]
    for encoder in encoders:
        encoder.load_state_dict(encoders[0].state_dict())
    assert len({encoder.fingerprint() for encoder in encoders}) == 3
    # DEFAULT is kept as what it stands for now: a later torchvision may mean another.
    assert encoders[2].config()["weights"] == "IMAGENET1K_V2"


def test_the_scaling_inside_of_googlenet_is_done_before_it(
    downloads: Callable[[nn.Module], None], picture: Maker
) -> None:
    model = plain("googlenet", aux_logits=True, init_weights=False, transform_input=True)
    downloads(model)
    encoder = build_encoder("torchvision:googlenet:IMAGENET1K_V1").eval()
    value = picture(0, (250, 240))
    picture_ = Image.open(io.BytesIO(value))
    x = models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()(picture_)[None]
    with torch.no_grad():
        expected = captured(model, model.avgpool, x)[0].flatten(2).transpose(1, 2)
        assert_close(encoder(**encoder.collate([value])).tokens, expected)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_weights_file_of_another_number_of_classes_is_taken_up(
    suffix: str, tmp_path: Path
) -> None:
    model = plain("mnasnet0_5", num_classes=7)  # its class asks for the version of its weights
    file = tmp_path / f"own.{suffix}"
    state = model.state_dict()
    if suffix == "pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    encoder = build_encoder(f"torchvision:mnasnet0_5?size={SIZE}", weights_file=str(file)).eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert_close(encoder(x).tokens, model.layers(x).flatten(2).transpose(1, 2))


def test_wrong_weights_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such weights file: /no/such"):
        build_encoder("torchvision:resnet18?weights_file=/no/such&size=32")
    save_file(plain("squeezenet1_1").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other architecture: 'conv1\.weight' is missing"):
        build_encoder("torchvision:resnet18", weights_file=str(tmp_path / "other.safetensors"))
    torch.save({"a": 1, "b": Path}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code\.pth is no state dict"):
        build_encoder("torchvision:resnet18?size=32", weights_file=str(tmp_path / "code.pth"))


def test_a_saved_model_comes_back_without_the_network(
    tmp_path: Path, picture: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network is not needed")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    torch.manual_seed(0)
    encoder = build_encoder("torchvision:shufflenet_v2_x0_5?size=48&pool=mean")
    fusion = build_fusion("concat", {"image": encoder.width}, 8)
    task = build_task("classification", classes=["a", "b"])
    model = TransferModel({"image": encoder}, fusion, {"kind": task}).eval()
    model.save_pretrained(tmp_path / "model")
    again = TransferModel.from_pretrained(tmp_path / "model")
    rows = [{"image": picture(k)} for k in range(3)]
    assert again.predict(rows) == model.predict(rows)
    twin: Encoder = again.encoders["image"]
    assert twin.fingerprint() == encoder.fingerprint()


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_it_trains(strategy: str, picture: Maker, tmp_path: Path) -> None:
    rows = [
        {"image": np.full((40, 40, 3), 250 * (k % 2), np.uint8), "kind": "ab"[k % 2]}
        for k in range(16)
    ]
    model = build_model(
        {"image": "torchvision:squeezenet1_1?size=40"}, {"kind": "classification"}, rows, width=8
    )
    before = {n: p.clone() for n, p in model.encoders.named_parameters()}
    options = TrainingOptions(batch_size=8, workers=0)
    run(model, {"train": rows}, build_strategy(strategy, epochs=1), options)
    moved = [n for n, p in model.encoders.named_parameters() if not torch.equal(p, before[n])]
    assert bool(moved) == (strategy == "full")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision", "torchvision:<name>"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19'.*mean 'resnet18'"),
        ("torchvision:resnet18:IMAGENET1K_V3", "no weights 'IMAGENET1K_V3'.*mean 'IMAGENET1K_V1'"),
        ("torchvision:resnet18?layer=fc", "unknown layer 'fc'.*map, penultimate"),
        ("torchvision:resnet18?pool=maen", "unknown pool 'maen'.*mean 'mean'"),
        ("torchvision:resnet18?pool=first&size=32", "'resnet18' has none"),
        ("torchvision:resnet18?sise=32", "no option 'sise'.*mean 'size'"),
        ("torchvision:resnet18?size=0", "size must be a whole number above zero, found 0"),
    ],
)
def test_mistakes_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(spec)
