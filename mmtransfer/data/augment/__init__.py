"""Random changes of training values, per modality, seeded per row; and the settings of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmtransfer.data.augment.audio import AugmentAudio, SpecAugment
from mmtransfer.data.augment.image import AugmentImage
from mmtransfer.data.augment.settings import configure
from mmtransfer.data.augment.text import AugmentText
from mmtransfer.registry import nearest

__all__ = [
    "AUGMENTATIONS",
    "AugmentAudio",
    "AugmentImage",
    "AugmentText",
    "SpecAugment",
    "build_augmentations",
    "check_augment",
]

#: by modality
AUGMENTATIONS: dict[str, Any] = {
    "image": AugmentImage,
    "text": AugmentText,
    "audio": AugmentAudio,
}


def check_augment(setting: Any) -> None:
    """Raise `ValueError` for a setting that is wrong whatever the columns are called.

    setting: True, False, or `{column or modality: True, False or {option: value}}`
    """
    if isinstance(setting, bool):
        return
    if not isinstance(setting, Mapping):
        raise ValueError(
            f"augment must be true, false or settings by column or modality, found {setting!r}"
        )
    for name, value in setting.items():
        if name in AUGMENTATIONS:
            configure(AUGMENTATIONS[name], value, f"augment {name!r}")
        elif not isinstance(value, bool | Mapping):
            raise ValueError(
                f"augment {name!r} must be true, false or its options, found {value!r}"
            )


def build_augmentations(
    setting: Any, modalities: Mapping[str, str | None], columns: Iterable[str] = ()
) -> dict[str, Any]:
    """By input column, what changes its training values; the others are left as they are.

    setting: as in `check_augment`; a column goes before its modality, what is not named keeps the
        defaults
    modalities: the modality of each input column, None where there is no augmentation for it
    columns: others of the data, which may be named although this model does not read them
    Raises `ValueError` for an unknown name or option, with the nearest valid one.
    """
    check_augment(setting)
    if isinstance(setting, bool):
        setting = {} if setting else dict.fromkeys(modalities, False)
    known = {*modalities, *AUGMENTATIONS, *columns}
    for name, value in setting.items():
        if name not in known:
            valid = dict.fromkeys([*modalities, *AUGMENTATIONS])
            raise ValueError(
                f"augment names no column or modality {name!r}.{nearest(str(name), valid)}"
            )
        if value and name in modalities and modalities[name] not in AUGMENTATIONS:
            raise ValueError(
                f"column {name!r} cannot be augmented: its encoder's modality is "
                f"{modalities[name]!r}, expected one of {', '.join(AUGMENTATIONS)}"
            )
    built = {}
    for column, modality in modalities.items():
        if modality in AUGMENTATIONS:
            chosen = setting.get(column, setting.get(modality, True))
            change = configure(AUGMENTATIONS[modality], chosen, f"augment {column!r}")
            if change is not None:
                built[column] = change
    return built
