"""Methods that say by which weights a model is kept: which go together."""

from __future__ import annotations

import pytest

from mmtransfer.methods.base import Method
from mmtransfer.transfer.adapters import add_adapters, merge_adapters
from mmtransfer.transfer.base import build_strategy, check_plan

from ..methods.looking import small_model

SPLITS = ("train", "unlabelled")


class Plain(Method):
    def averaged(self, model):
        return {}


@pytest.mark.parametrize(
    ("preset", "methods", "names"),
    [
        ("wise_ft", ["ema"], "WiSEFT and EMA .* which parameters"),
        ("wise_ft", ["adabn"], "WiSEFT and AdaBN .* which buffers"),
        ("full", ["adabn", "sam", "wise_ft"], "AdaBN and WiSEFT .* which buffers"),
        ("full", ["ema", "ema"], "EMA and EMA .* which parameters"),
        ("full", [Plain(), "ema"], "Plain and EMA"),
    ],
)
def test_one_average_cannot_replace_another_silently(preset, methods, names):
    with pytest.raises(ValueError, match=f"{names}.*: leave one of the two out"):
        check_plan(build_strategy(preset, methods=methods), small_model(), splits=SPLITS)


def test_averages_of_weights_go_with_statistics_of_the_target():
    strategy = build_strategy("full", methods=["ema", "adabn", "l2_sp"])
    check_plan(strategy, small_model(), splits=SPLITS)


def test_what_lies_between_adapters_is_not_between_weights():
    model, refused = small_model(), "WiSEFT needs weights without adapters.*leave one of the two"
    for preset in ("lora", "dora"):
        with pytest.raises(ValueError, match=refused):
            check_plan(build_strategy(preset, methods=["wise_ft"]), model)
    add_adapters(model, {"a": "lora"})  # of an earlier run
    with pytest.raises(ValueError, match=refused):
        check_plan(build_strategy("wise_ft"), model)
    merge_adapters(model)
    check_plan(build_strategy("wise_ft"), model)
