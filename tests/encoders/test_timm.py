"""timm: encoders give what timm's own models compute, by timm's own groups and preprocessing."""

import builtins
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

timm = pytest.importorskip("timm")

from mmtransfer.encoders.base import build_encoder  # noqa: E402
from mmtransfer.encoders.timm import TimmEncoder  # noqa: E402
from mmtransfer.fusion.base import build_fusion  # noqa: E402
from mmtransfer.model import TransferModel  # noqa: E402
from mmtransfer.tasks.base import build_task  # noqa: E402
from mmtransfer.testing import check_cuts, check_encoder  # noqa: E402
from mmtransfer.training.options import TrainingOptions  # noqa: E402
from mmtransfer.training.run import build_model, run  # noqa: E402
from mmtransfer.transfer.base import build_strategy  # noqa: E402

Maker = Callable[..., bytes]
#: side in pixels by name: those with positions need one that their windows divide
SIZES = {
    "test_convnext": 64,
    "test_efficientnet": 64,
    "test_mambaout": 64,
    "test_resnet": 64,
    "test_vit": 64,
    "test_vit3": 64,
    "mobilenetv3_small_050": 64,
}
DIVIDED = ("test_convnext", "test_resnet", "test_vit", "test_vit3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, str]]:
    """timm's own model with random weights and statistics, and its checkpoint."""
    made: dict[str, tuple[Any, str]] = {}

    def make(name: str) -> tuple[Any, str]:
        if name not in made:
            torch.manual_seed(0)
            model = timm.create_model(name, **positions(name)).eval()
            for part in model.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.running_mean.uniform_(-0.2, 0.2)
                    part.running_var.uniform_(0.5, 1.5)
            file = tmp_path_factory.mktemp("timm") / f"{name}.safetensors"
            save_file(model.state_dict(), file)
            made[name] = model, str(file)
        return made[name]

    return make


def positions(name: str) -> dict[str, int]:
    return {"img_size": SIZES[name]} if "vit" in name else {}


def assert_close(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 1e-4
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("name", SIZES)
def test_features_are_those_of_timm(name: str, weights: Callable[[str], tuple[Any, str]]) -> None:
    model, file = weights(name)
    size = SIZES[name]
    x = torch.randn(2, 3, size, size)
    encoder = build_encoder(f"timm:{name}", checkpoint=file, size=size).eval()
    assert encoder.pretrained
    with torch.no_grad():
        expected = model.forward_features(x)
        if expected.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
            expected = expected.flatten(1, 2)
        elif expected.ndim == 4:
            expected = expected.flatten(2).transpose(1, 2)
        assert_close(encoder(x).tokens, expected)
        head = build_encoder(f"timm:{name}?pool=head", checkpoint=file, size=size).eval()
        assert_close(head(x).tokens[:, 0], model.forward_head(model.forward_features(x), True))


@pytest.mark.parametrize("name", SIZES)
def test_the_contract_is_kept_with_the_groups_that_timm_declares(name: str, picture: Maker) -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder(name, size=SIZES[name])
    covered = [id(p) for stage in encoder.stages for p in stage.parameters()]
    assert sorted(covered) == sorted(map(id, encoder.parameters()))
    assert len(encoder.stages) >= 5
    expected = range(1, len(encoder.stages)) if name in DIVIDED else []
    assert list(encoder.cuts) == list(expected)
    check_encoder(encoder, [picture(0), picture(1, (90, 60))])
    with torch.no_grad():
        pixels = encoder.collate([picture(0)])["pixels"]
        whole = encoder(pixels).tokens
        for depth in encoder.cuts:
            assert_close(encoder.above(depth, encoder.below(depth, pixels=pixels)).tokens, whole)


def test_stages_go_from_input_to_output() -> None:
    encoder = TimmEncoder("test_vit3", size=64)
    names = {id(p): n.removeprefix("model.") for n, p in encoder.named_parameters()}
    stages = [{names[id(p)] for p in stage.parameters()} for stage in encoder.stages]
    assert {"reg_token", "pos_embed", "patch_embed.proj.weight"} <= stages[0]
    for number, stage in enumerate(stages[1:]):
        blocks = {name for name in stage if name.startswith("blocks.")}
        assert blocks
        assert all(name.startswith(f"blocks.{number}.") for name in blocks)


def test_the_head_has_its_own_pools_and_the_class_token_is_the_first(
    weights: Callable[[str], tuple[Any, str]],
) -> None:
    model, file = weights("test_vit")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.forward_features(x)
        for pool, expected in {"first": tokens[:, 0], "mean": tokens.mean(1)}.items():
            encoder = build_encoder(f"timm:test_vit?size=64&pool={pool}", checkpoint=file).eval()
            assert_close(encoder(x).tokens[:, 0], expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_feature_levels_are_those_of_features_only(
    name: str, weights: Callable[[str], tuple[Any, str]], picture: Maker
) -> None:
    model, file = weights(name)
    x = torch.randn(2, 3, 64, 64)
    plain = timm.create_model(
        name, features_only=True, out_indices=[1, 2], feature_cls="getter", **positions(name)
    )
    plain.model.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        levels = plain.eval()(x)
    for spec, expected in (
        ("out_indices=2", levels[1].flatten(2).transpose(1, 2)),
        ("out_indices=[1,2]", torch.cat([v.mean((2, 3)) for v in levels], 1)[:, None]),
    ):
        spec = f"timm:{name}?size=64&features_only=true&{spec}"
        encoder = build_encoder(spec, checkpoint=file).eval()
        with torch.no_grad():
            assert_close(encoder(x).tokens, expected)
        assert encoder.width == expected.shape[2]
        # What lies above the levels is taken off.
        assert sum(p.numel() for p in encoder.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
        check_encoder(encoder, [picture(0), picture(1)])


def test_pictures_go_through_the_transform_of_the_model(picture: Maker) -> None:
    encoder = TimmEncoder("test_resnet")
    model = timm.create_model("test_resnet")
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    value = picture(0, (210, 180))
    pixels = pickle.loads(pickle.dumps(encoder.collate))([value])["pixels"]
    assert torch.equal(pixels[0], transform(Image.open(io.BytesIO(value))))
    other = TimmEncoder("test_resnet", data=data | {"mean": (0.1, 0.2, 0.3)})
    other.load_state_dict(encoder.state_dict())
    assert other.fingerprint() != encoder.fingerprint()


def test_a_model_directory_of_timm_is_read_and_saved_under_its_architecture(
    weights: Callable[[str], tuple[Any, str]], tmp_path: Path, picture: Maker
) -> None:
    model, _ = weights("test_resnet")
    timm.models.save_for_hf(model, tmp_path / "published", safe_serialization=True)
    encoder = build_encoder(f"timm:local-dir:{tmp_path / 'published'}?pool=mean").eval()
    assert encoder.name == "test_resnet"
    fusion = build_fusion("concat", {"image": encoder.width}, 8)
    task = build_task("classification", classes=["a", "b"])
    whole = TransferModel({"image": encoder}, fusion, {"kind": task}).eval()
    whole.save_pretrained(tmp_path / "model")
    (tmp_path / "published" / "config.json").unlink()
    again = TransferModel.from_pretrained(tmp_path / "model")
    rows = [{"image": picture(k)} for k in range(3)]
    assert again.predict(rows) == whole.predict(rows)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_close(
            again.encoders["image"](x).tokens[:, 0], model.forward_features(x).mean((2, 3))
        )
    saved = json.loads((tmp_path / "model" / "encoders" / "image" / "encoder.json").read_text())
    assert saved["data"]["input_size"] == list(encoder.data["input_size"])


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_it_trains(strategy: str, picture: Maker) -> None:
    rows = [{"image": picture(k), "kind": "ab"[k % 2]} for k in range(8)]
    spec = "timm:test_resnet?pretrained=false&size=32"
    model = build_model({"image": spec}, {"kind": "classification"}, rows, width=8)
    before = {n: p.clone() for n, p in model.encoders.named_parameters()}
    options = TrainingOptions(batch_size=4, workers=0)
    run(model, {"train": rows}, build_strategy(strategy, epochs=1), options)
    moved = [n for n, p in model.encoders.named_parameters() if not torch.equal(p, before[n])]
    assert bool(moved) == (strategy == "full")


def test_further_arguments_reach_timm_and_come_back(tmp_path: Path) -> None:
    encoder = build_encoder(
        "timm:test_vit?pretrained=false&size=32", model_args={"drop_path_rate": 0.5}
    )
    encoder.save(tmp_path)
    twin: Any = TimmEncoder.load(tmp_path)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in twin.model.blocks]
    assert max(rates) == pytest.approx(0.5)


def test_drop_out_behind_a_frozen_stem_is_off(picture: Maker) -> None:
    arguments = {"pos_drop_rate": 0.5, "patch_drop_rate": 0.5}
    encoder = TimmEncoder("test_vit", size=64, pool="mean", model_args=arguments)
    encoder.eval()
    check_cuts(encoder, [picture(0), picture(1)])
    encoder.train()
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(encoder(x).tokens, encoder(x).tokens)  # of one that trains it is on


def test_statistics_above_a_cut_are_no_part_of_what_lies_below() -> None:
    encoder = TimmEncoder("test_resnet", size=64)
    depth = encoder.cuts[1]
    names = [n for n, _ in encoder.named_buffers() if n.endswith("running_mean")]
    below, whole = encoder.fingerprint(depth), encoder.fingerprint()
    encoder.get_buffer(names[-1]).add_(1)
    assert encoder.fingerprint(depth) == below
    assert encoder.fingerprint() != whole
    encoder.get_buffer(names[0]).add_(1)
    assert encoder.fingerprint(depth) != below


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'mmtransfer\[timm\]'"):
        build_encoder("timm:test_vit?pretrained=false")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm", "timm:<name>"),
        ("timm:resnet51", "unknown timm model 'resnet51'.*mean 'resnet"),
        ("timm:resnet18.a1_in1", "'resnet18' has no weights 'a1_in1'.*mean 'a1_in1k'"),
        ("timm:test_vit?pool=haed", "unknown pool 'haed'.*mean 'head'"),
        ("timm:test_resnet?pretrained=false&pool=first", "needs a class token"),
        ("timm:test_vit?features_only=true&pool=head", "needs the whole model"),
        ("timm:test_resnet?pretrained=false&features_only=true&out_indices=9", "no level"),
        ("timm:test_resnet?pretrained=false&features_only=true&out_indices=1.5", "found 1.5"),
        ("timm:test_vit?out_indexes=2", "no option 'out_indexes'.*mean 'out_indices'"),
        ('timm:test_vit?pretrained=false&model_args={"no_such":1}', "unexpected keyword"),
    ],
)
def test_mistakes_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(spec)


def test_a_checkpoint_of_another_model_is_refused(
    weights: Callable[[str], tuple[Any, str]],
) -> None:
    _, file = weights("test_resnet")
    with pytest.raises(ValueError, match="cannot be loaded"):
        build_encoder("timm:test_convnext", checkpoint=file)
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        build_encoder("timm:test_resnet?checkpoint=/no/such.safetensors")
