"""What will a user do next?  A picture looked at, a text typed and a word said tell it together.

A seeded generator makes users: what they do depends on all three.  Each encoder first learns its
own modality from other data (a minute on one core):

    python recipes/user_behaviour.py

Your own users, in parquet files with columns image, text, audio and action:

    accelerate launch recipes/user_behaviour.py --data DIR --image hf:ID --text hf:ID --audio hf:ID
"""

from __future__ import annotations

from pathlib import Path

from mmtransfer import Encoder, Phase, Strategy, TrainingOptions, build_encoder, build_strategy
from mmtransfer.cli import command
from mmtransfer.data.rows import Rows, load_rows, with_label_names
from mmtransfer.data.stand_in_people import users
from mmtransfer.data.stand_ins import counts, made_up, reviews, utterances
from mmtransfer.training.recipe import Start, compare, learned_from_photos, pretrain
from mmtransfer.training.run import build_model, check_output
from mmtransfer.training.setup import end_processes

TINY = {
    "image": "small-cnn?size=32&widths=[16,32,64]&pool=mean",
    "text": "tiny-bert?width=48&max_tokens=80",
    "audio": "spectrogram-cnn?n_mels=32&widths=[16,32,64]&pool=mean",
}
LABELLED = 160  # users of the stand-in


def learn(training: TrainingOptions, quick: bool) -> dict[str, Encoder]:
    """An encoder per modality that has learned it from data of its own."""
    found = {"image": learned_from_photos(TINY["image"], training, quick=quick)}
    films, words = (
        reviews("films", counts(1600, quick)),
        utterances(made_up(20), counts(800, quick)),
    )
    for name, data, task, lr in (("text", films, "opinion", 2e-3), ("audio", words, "word", 2e-3)):
        model = build_model({name: TINY[name]}, {task: "classification"}, data["train"], width=128)
        phase = Phase(epochs=8, lr=lr, encoder_lr=lr)
        found[name] = pretrain(model, data, Strategy([phase]), training, name, quick).encoders[name]
    return found


def main(
    data: Path | None = None,
    image: str = "hf:google/vit-base-patch16-224",
    text: str = "hf:google-bert/bert-base-uncased",
    audio: str = "hf:facebook/wav2vec2-base",
    epochs: int = 15,
    seeds: int = 1,
    quick: bool = False,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - jsonargparse reads it
    output: Path = Path("runs/user_behaviour"),
    overwrite: bool = False,
) -> None:
    """Foresee actions of users from image, text and voice.

    Args:
        data: directory or hub id of your own users; without it, a seeded generator makes them
        image: encoder of their pictures (see `mmtransfer encoders`)
        text: encoder of their texts
        audio: encoder of their voices
        epochs: over the users
        seeds: repetitions of each cell of the table
        quick: a few rows and one epoch, to see that all runs
        training: batch size, precision, seed and the like
        output: directory for model, metrics, chart and logs
        overwrite: replace the run that the output directory holds
    """
    begin = {"arguments": dict(locals()), "overwrite": overwrite}
    check_output(output, overwrite)
    target: dict[str, Rows]
    if data is None:
        target, encoders = users(counts(LABELLED, quick)), learn(training, quick)
    else:
        target = {k: with_label_names(rows, "action") for k, rows in load_rows(data).items()}
        chosen = {"image": image, "text": text, "audio": audio}
        encoders = {name: build_encoder(spec) for name, spec in chosen.items()}
    tasks, options = {"action": "classification"}, {"fusion": "concat", "width": 128}
    rates = {"lr": 2e-3, "encoder_lr": 5e-5 if data else 5e-4}
    full = build_strategy("full", epochs=epochs, **rates)
    all_three = Start(encoders, tasks, target["train"], options)
    contenders = {"from scratch": (all_three.scratch, full)}
    for name, encoder in encoders.items():
        alone = Start({name: encoder}, tasks, target["train"], options)
        contenders[f"{name} alone"] = (alone.pretrained, full)
    contenders["all three"] = (all_three.pretrained, full)
    title = f"Test accuracy, actions of {len(target['train'])} users to learn from"
    compare(contenders, target, training, output, title, seeds, quick, **begin)
    end_processes()


if __name__ == "__main__":
    command(main, "user_behaviour.py")
