"""Captions, their vocabulary, and a CLIP tokenizer and text encoder of our own.

Every class name is one word and one token, so that a single learned vector can stand in its place.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

GENERIC = ("object", "letter", "sign", "character", "symbol", "glyph", "shape")
_ENGLISH = (
    "a an the photo image picture drawing of written writing hand handwritten printed object thing letter sign "
    "character symbol glyph shape mark icon line stroke curve circle ring loop arc cross dot square triangle "
    "arrow star bar box hook wave round straight thin thick bold light dark small large black white grey gray on "
    "in with and or to for is this that close up bright clean good bad cropped low resolution texture pattern "
    "background style font pen ink word text person man woman child dog cat bird horse fish bear car truck bus "
    "train plane ship boat bicycle house building tree flower leaf plant fruit apple orange food bread cup bottle "
    "bowl plate chair table bed lamp clock phone computer book paper key tool machine part screw nut metal wood "
    "glass stone plastic road street sea mountain forest sky cloud sun moon water fire red green blue yellow "
    "brown pink purple animal insect snake class type kind new old big little left right top bottom front back "
    "side front view defect normal "
)
WORDS = _ENGLISH.split()
LENGTH = 16
SPREAD, MARK = 0.2, 1.5
"""Of the token embeddings: standard deviation of each number, and length along focus's direction."""


def train_tokenizer(names: list[str], folder: Path) -> CLIPTokenizer:
    """Byte-pair merges learned until each name and each of WORDS is a single token; vocab.json and merges.txt.

    Raises ValueError for a name that cannot be one: with digits, say, which CLIP takes one by one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = byte_pairs(sorted(set(WORDS) | set(GENERIC) | set(names)))
    alphabet = _byte_letters()
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    tokens = [*list(dict.fromkeys(tokens)), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)
    broken = [name for name in names if len(tokenizer(name, add_special_tokens=False).input_ids) != 1]
    if broken:
        raise ValueError(f"class names must be words of the letters a to z: {', '.join(broken[:5])}")
    tokenizer.save_pretrained(folder)
    return tokenizer


def byte_pairs(words: list[str]) -> list[tuple[str, str]]:
    """The merges, most frequent pair first, that make every word one token. Source: Sennrich et al. 2015, 1508.07909.

    Ties go to the alphabetically first pair: the same words give the same token ids on every run, which library
    trainers don't promise.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while counts := Counter(pair for piece in pieces for pair in itertools.pairwise(piece)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_joined(piece, best) for piece in pieces]
    return merges


def _joined(piece: list[str], pair: tuple[str, str]) -> list[str]:
    """The piece with each occurrence of the pair, from the left, made one symbol."""
    if pair[0] not in piece:
        return piece
    out: list[str] = []
    for symbol in piece:
        if out and out[-1] == pair[0] and symbol == pair[1]:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def _byte_letters() -> list[str]:
    """The printable stand-ins of the 256 bytes. Source: Radford et al. 2019 (GPT-2), byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def text_encoder(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2) -> CLIPTextModel:
    """A small CLIP text encoder whose every position from the name on says which name it is; see focus.

    Random weights from the global torch seed, kept frozen: trained with the UNet from the start it collapses (names are
    rare, and drown in what all captions share before the UNet has learned to look at them).
    """
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    focus(model, tokenizer)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def focus(model: CLIPTextModel, tokenizer: CLIPTokenizer, sharpness: float = 4.0) -> None:
    """Set the first layer so that all later positions attend to the name.

    Every word but the templates' filler carries MARK along one direction u; the keys read u, the queries ask for it,
    and values and output are rotations, so the name's embedding reaches the end-of-text and padding positions whole.
    """
    table = model.get_input_embeddings().weight
    width = table.shape[1]
    torch.nn.init.normal_(table, std=SPREAD)
    u = torch.nn.functional.normalize(torch.randn(width), dim=0)
    filler = tokenizer("a an A photo of image drawing the written picture").input_ids
    marked = torch.ones(len(table), dtype=torch.bool)
    marked[filler] = False
    table[marked] += MARK * u
    table[tokenizer.pad_token_id] = 0
    attention = model.encoder.layers[0].self_attn
    first = torch.arange(attention.num_heads) * (width // attention.num_heads)
    attention.k_proj.weight[first] = u
    attention.q_proj.weight[first] = 0
    attention.q_proj.bias[first] = sharpness
    torch.nn.init.orthogonal_(attention.v_proj.weight)
    torch.nn.init.orthogonal_(attention.out_proj.weight)


def prototype_codes(prototypes: torch.Tensor, width: int = 128) -> torch.Tensor:
    """Class prototypes (C, D') of the teacher → codes (C, width - 1): half-whitened principal components.

    Alike glyphs have alike codes and every class is still told apart: the UNet learns a smooth map, and
    textual inversion searches a space that means something.
    """
    unit = torch.nn.functional.normalize(prototypes, dim=-1)
    left, values, _ = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    codes = (left * values.sqrt())[:, : width - 1]
    codes = torch.nn.functional.pad(codes, (0, width - 1 - codes.shape[1]))
    return codes / codes.std()


@torch.no_grad()
def name_classes(model: CLIPTextModel, tokenizer: CLIPTokenizer, names: list[str], codes: torch.Tensor) -> None:
    """Give each name's token its code (C, width - 1), at right angles to focus's mark direction, which it keeps."""
    table = model.get_input_embeddings().weight
    u = torch.nn.functional.normalize(model.encoder.layers[0].self_attn.k_proj.weight[0], dim=0)
    basis, _ = torch.linalg.qr(torch.randn(len(u), len(u) - 1))
    placed = codes @ basis.T
    placed = placed - (placed @ u)[:, None] * u
    rows = torch.tensor([tokenizer(name, add_special_tokens=False).input_ids[0] for name in names])
    table[rows] = placed / placed.std() * SPREAD + MARK * u


def caption_ids(tokenizer: CLIPTokenizer, names: list[str], templates: tuple[str, ...]) -> torch.Tensor:
    """(C + 2, T, L) token ids of every name in every template; row C: a generic word, row C + 1: the empty prompt."""
    rows = [[template.format(name=name) for template in templates] for name in names]
    rows.append([template.format(name=GENERIC[i % len(GENERIC)]) for i, template in enumerate(templates)])
    rows.append([""] * len(templates))
    flat = tokenizer(
        [text for row in rows for text in row],
        padding="max_length",
        max_length=LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return flat.reshape(len(rows), len(templates), -1)
