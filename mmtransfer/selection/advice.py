"""Which strategy for so many labels and so much time, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: labels per class below which weights are better left alone, and from which all may move at once
FEW, MANY = 8, 300
#: proxy A-distances, from 0 to 2: below the first two domains look alike, from the second on not
NEAR, FAR = 0.5, 1.5
#: epochs of the named strategies that train encoders, and of training on stored features
TUNING_EPOCHS = {"lp_ft": 10, "full": 12}
PROBE_EPOCHS = {"linear_probe": 40, "lp_ft": 20}
#: forward passes that a forward and a backward pass take
PASSES = 3.0
STEP_SECONDS, BATCH = 0.006, 32  # of fusion and heads on stored features


@dataclass(frozen=True)
class Advice:
    """A strategy by name, why, and the minutes that each would take about."""

    strategy: str
    reasons: tuple[str, ...]
    minutes: dict[str, float]


def estimate_minutes(train_rows: int, other_rows: int, row_seconds: float) -> dict[str, float]:
    """About how long the named strategies take, by their own epochs.

    row_seconds: of encoding a row with all encoders; other_rows: that are evaluated in each epoch
    """
    steps = -(-train_rows // BATCH)
    found = {}
    for name in ("linear_probe", "lp_ft", "full"):
        seconds = PROBE_EPOCHS.get(name, 0) * steps * STEP_SECONDS
        each = (PASSES * train_rows + other_rows) * row_seconds
        found[name] = (seconds + TUNING_EPOCHS.get(name, 0) * each) / 60
    return found


def advise(
    labels: int,
    classes: int,
    minutes: Mapping[str, float],
    budget_minutes: float | None = None,
    apart: Mapping[str, float] | None = None,
) -> Advice:
    """Choose between "linear_probe", "lp_ft" and "full".

    labels: labelled training rows; apart: proxy A-distance of source and target by column
    """
    each = labels / max(classes, 1)
    reasons = []
    farthest = max((apart or {}).values(), default=None)
    if each < FEW:
        wanted = "linear_probe"
        reasons.append(
            f"{each:.1f} labels per class are few: the encoders stay as they are, since "
            "fine-tuning would distort them more than so few rows can teach"
        )
    elif each >= MANY and (farthest is None or farthest >= NEAR):
        wanted = "full"
        reasons.append(f"{each:.0f} labels per class are enough to train everything from the start")
    else:
        wanted = "lp_ft"
        reasons.append(
            f"{each:.0f} labels per class are enough to fine-tune, from heads that are trained "
            "first, so that the first steps do not spoil the encoders"
        )
    for column, distance in (apart or {}).items():
        if distance < NEAR:
            reasons.append(f"{column} looks as in the source ({distance:.2f} of 2)")
        elif distance >= FAR:
            reasons.append(
                f"{column} is far from the source ({distance:.2f} of 2): what was learned there "
                "will have to change"
            )
    if budget_minutes is None:
        return Advice(wanted, tuple(reasons), dict(minutes))
    chosen = wanted
    for cheaper in ("lp_ft", "linear_probe"):
        if minutes[chosen] > budget_minutes and minutes[cheaper] < minutes[chosen]:
            reasons.append(
                f"{chosen} would take about {minutes[chosen]:.3g} of the "
                f"{budget_minutes:g} minutes that there are"
            )
            chosen = cheaper
    if minutes[chosen] > budget_minutes:
        reasons.append(f"even {chosen} takes about {minutes[chosen]:.3g} minutes")
    return Advice(chosen, tuple(reasons), dict(minutes))
