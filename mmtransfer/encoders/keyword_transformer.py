"""KWT: the keyword transformer, a small pretrained audio encoder with its own MFCC front end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.decoding import (
    decode_audio,
    index_windows,
    join_windows,
    part_windows,
    split_windows,
)
from mmtransfer.encoders.numbers import check_seconds
from mmtransfer.features import Features
from mmtransfer.registry import nearest, register_encoder

TOKENS = ("class", "mean", "frames")


class MFCC(nn.Module):
    """Magnitude spectrum, mel, log, DCT with the model's own constant matrices."""

    def __init__(self, n_mels: int, n_bins: int, n_mfcc: int, frame: int, step: int, n_fft: int):
        super().__init__()
        self.frame, self.step, self.n_fft = frame, step, n_fft
        self.register_buffer("window", torch.zeros(frame))
        self.register_buffer("mel", torch.zeros(n_mels, n_bins))
        self.register_buffer("dct", torch.zeros(n_mfcc, n_mels))

    def forward(self, samples: Tensor) -> Tensor:
        """(B, L) samples -> (B, T, n_mfcc)."""
        # log and FFT lose digits in half precision, whatever the precision of the rest.
        with torch.autocast(samples.device.type, enabled=False):
            window, mel, dct = (self.get_buffer(n).float() for n in ("window", "mel", "dct"))
            frames = samples.float().unfold(-1, self.frame, self.step) * window  # (B, T, frame)
            spectrum = torch.fft.rfft(frames, self.n_fft).abs()[..., : mel.shape[1]]
            return (spectrum @ mel.T).clamp_min(1e-12).log() @ dct.T


class Stem(nn.Module):
    """Each frame is a patch; a class token goes in front; positions are added."""

    def __init__(self, n_mfcc: int, width: int, tokens: int) -> None:
        super().__init__()
        self.patch = nn.Linear(n_mfcc, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, tokens, width))

    def forward(self, frames: Tensor) -> Tensor:
        x = self.patch(frames)  # (B, T, D)
        return torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], 1) + self.position


class Block(nn.Module):
    """Post-norm transformer block with bias-free queries, keys and values."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = split.unbind(0)  # (B, heads, T, D / heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, T, D)
        x = self.norm1(x + self.proj(attended))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x), approximate="tanh")))


@register_encoder("kwt")
class KeywordTransformer(Encoder):
    """KWT audio transformer, `kwt:<directory>` (Berg et al., Interspeech 2021).

    Clips of any length are cut into one-second windows, one every `hop_seconds`; each window gives
    its class token ("class"), class token and frame mean side by side ("mean", 2 D) or all of its
    tokens ("frames").

    Raises `ValueError` for an unknown choice of tokens, `FileNotFoundError` for a bad directory.
    """

    modality = "audio"

    def __init__(
        self, model: dict[str, Any], tokens: str = "mean", hop_seconds: float = 0.5
    ) -> None:
        super().__init__()
        if tokens not in TOKENS:
            raise ValueError(f"unknown tokens {tokens!r}.{nearest(tokens, TOKENS)}")
        check_seconds("hop_seconds", hop_seconds, model["sample_rate"])
        if hop_seconds > 1:
            raise ValueError(f"hop_seconds must be at most 1, found {hop_seconds}")
        self.model, self.tokens, self.hop_seconds = model, tokens, hop_seconds
        hidden = model["hidden_size"]
        self.width = 2 * hidden if tokens == "mean" else hidden
        self.frontend = MFCC(
            model["n_mels"],
            model["n_fft_bins"],
            model["n_mfcc"],
            model["frame_length"],
            model["frame_step"],
            model["n_fft"],
        )
        self.stem = Stem(model["n_mfcc"], hidden, model["num_tokens"])
        self.blocks = nn.ModuleList(
            Block(hidden, model["num_heads"], model["intermediate_size"], model["layer_norm_eps"])
            for _ in range(model["num_layers"])
        )
        self.collate = SpeechWindows(model["sample_rate"], model["num_samples"], hop_seconds)

    @classmethod
    def from_pretrained(
        cls, source: str, tokens: str = "mean", hop_seconds: float = 0.5
    ) -> KeywordTransformer:
        """Load `config.json` and `model.safetensors` of a directory."""
        directory = Path(source)
        for file in ("config.json", "model.safetensors"):
            if not (directory / file).is_file():
                raise FileNotFoundError(f"kwt:{source}: no {file} in this directory")
        model = json.loads((directory / "config.json").read_text())
        encoder = cls(model, tokens, hop_seconds)
        saved = load_file(directory / "model.safetensors")
        # The published names nest differently; the classification head stays behind.
        names = {"patch": "stem.patch", "cls_token": "stem.cls_token", "position": "stem.position"}
        state = {}
        for name, tensor in saved.items():
            head, _, tail = name.partition(".")
            renamed = names.get(head, head) + (f".{tail}" if tail else "")
            state[renamed.replace(".attn.", ".").replace(".mlp.", ".")] = tensor
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        encoder.load_state_dict(state)
        encoder.pretrained = True
        return encoder

    @property
    def stages(self) -> list[nn.Module]:
        return [self.stem, *self.blocks]

    @property
    def cuts(self) -> Sequence[int]:
        return range(1, len(self.stages))

    def encode(self, samples: Tensor, depth: int | None = None) -> Tensor:
        """(W, 16000) samples at 16 kHz -> (W, 99, D): class token, then the 98 frames."""
        x = self.stem(self.frontend(samples))
        for block in self.blocks[: None if depth is None else depth - 1]:
            x = block(x)
        return x

    def forward(self, samples: Tensor, windows: Tensor) -> Features:
        """samples (W, 16000), windows (B, K) of each row -> tokens (B, T, width)."""
        return self._joined(self.encode(samples), windows)

    def below(self, depth: int, **inputs: Tensor) -> Features:
        x = self.encode(inputs["samples"], depth)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return Features(*join_windows(x, mask, inputs["windows"]))

    def above(self, depth: int, activations: Features) -> Features:
        x, _, windows, _ = part_windows(activations, self.stem.position.shape[1])
        for block in self.blocks[depth - 1 :]:
            x = block(x)
        return self._joined(x, windows)

    def _joined(self, x: Tensor, windows: Tensor) -> Features:
        if self.tokens == "class":
            x = x[:, :1]
        elif self.tokens == "mean":
            x = torch.cat([x[:, :1], x[:, 1:].mean(1, keepdim=True)], -1)  # (W, 1, 2 D)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return Features(*join_windows(x, mask, windows))


class SpeechWindows:
    """Sounds to windows of a fixed length: `samples (W, L)` and `windows (B, K)` of each row."""

    def __init__(self, rate: int, length: int, hop_seconds: float) -> None:
        self.rate, self.length, self.hop = rate, length, round(rate * hop_seconds)

    def __call__(self, values: list[Any]) -> dict[str, Tensor]:
        windows, counts = [], []
        for value in values:
            cut = split_windows(decode_audio(value).at(self.rate), self.length, self.hop)
            windows += [F.pad(torch.from_numpy(w), (0, self.length - len(w))) for w in cut]
            counts.append(len(cut))
        return {"samples": torch.stack(windows), "windows": index_windows(counts)}
