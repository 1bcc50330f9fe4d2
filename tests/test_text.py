"""The text tower: packed captions as one at a time, in every layout, with every backend, causal or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from navit_loader.batch import ABSENT, FAILED, OK, PackedBatch
from navit_loader.errors import ConfigError, ModelError
from navit_model.config import TextConfig
from navit_model.model.attention import attention, choose, segments
from navit_model.model.text import Captions, TextTower, pack_captions

from .packed import packed

SMALL = TextConfig(width=16, depth=2, heads=2, vocabulary=30, max_tokens=9)


def tower(**changes: Any) -> TextTower:
    torch.manual_seed(0)
    return TextTower(replace(SMALL, **changes)).eval()


def captioned(sequences: list[list[list[int]]], length: int, failed: tuple[tuple[int, int], ...] = ()) -> PackedBatch:
    """A batch whose images have these captions: sequence by sequence the captions, then padding, then repeats."""
    E = 5
    batch = packed([[(1, 1)] * len(s) for s in sequences], length=E, longest=2, images=E, failed=failed)
    text = np.full((len(sequences), length), -1, np.int32)
    offsets = [0]
    for b, sequence in enumerate(sequences):
        at = 0
        for ids in sequence:
            text[b, at : at + len(ids)] = ids
            at += len(ids)
            offsets.append(b * length + at)
        offsets.append((b + 1) * length)
    offsets += [len(sequences) * length] * (len(sequences) * (E + 1) + 1 - len(offsets))
    return replace(batch, text=text, text_cu_seqlens=np.array(offsets, np.int32)).to("cpu")


caption = st.lists(st.integers(0, 29), max_size=9)
layouts = st.lists(st.lists(caption, max_size=5), min_size=1, max_size=3)


@settings(max_examples=15, deadline=None)
@given(
    sequences=layouts,
    spare=st.integers(0, 4),
    causal=st.booleans(),
    pool=st.sampled_from(["last", "map"]),
    backend=st.sampled_from(["dense", "segments"]),
)
def test_packed_captions_equal_each_alone(
    sequences: list[list[list[int]]], spare: int, causal: bool, pool: Any, backend: Any
) -> None:
    net = tower(causal=causal, pool=pool, attention=backend)
    length = max(1, spare + max(sum(map(len, sequence)) for sequence in sequences))
    captions = Captions.of(captioned(sequences, length))
    with torch.no_grad():
        found = net(captions)
        assert found.shape == (len(sequences), 5, 16)
        for b, sequence in enumerate(sequences):
            for e in range(5):
                there = e < len(sequence) and len(sequence[e]) > 0
                assert bool(captions.present[b, e]) == there
                if there:
                    alone = net(pack_captions([sequence[e]]))[0, 0]
                    assert (alone - found[b, e]).abs().max() < 1e-5


def test_a_failed_image_keeps_its_caption_in_its_slot() -> None:
    sequences = [[[1, 2], [3], [4, 5, 6]], [[7], [8, 9]]]
    batch = captioned(sequences, 8, failed=((0, 1),))
    assert batch.status.tolist() == [[OK, FAILED, OK, ABSENT, ABSENT], [OK, OK, ABSENT, ABSENT, ABSENT]]
    numbers = Captions.of(batch).numbers
    assert numbers.tolist() == [[0, 0, 1, 2, 2, 2, -1, -1], [0, 1, 1, -1, -1, -1, -1, -1]]


def test_a_causal_token_sees_nothing_behind_it() -> None:
    """Change the last token: what came before stays as it was, in a causal tower alone."""
    for causal in (True, False):
        net = tower(causal=causal)
        seen: list[Tensor] = []
        net.norm.register_forward_hook(lambda _m, _i, y, seen=seen: seen.append(y))
        with torch.no_grad():
            for last in (5, 6):
                net(pack_captions([[1, 2, 3, last], [7, 8]]))
        moved = (seen[0] - seen[1]).abs().amax(1) > 1e-6
        assert moved.tolist() == ([False] * 3 + [True] + [False] * 2 if causal else [True] * 4 + [False] * 2)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_causal_backends_agree_forward_and_backward(lengths: list[int], seed: int) -> None:
    total = sum(lengths)
    if total == 0:
        return
    cu = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    generator = torch.Generator().manual_seed(seed)
    base = [torch.randn(total, 2, 4, generator=generator) for _ in range(4)]
    found = []
    for backend in ("dense", "segments"):
        q, k, v = (x.clone().requires_grad_() for x in base[:3])
        out = attention(q, k, v, segments(cu, 12, total, backend, causal=True))  # type: ignore[arg-type]
        (out * base[3]).sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_padding_reaches_no_gradient_and_the_vocabulary_learns() -> None:
    batch = captioned([[[1, 2], [3]], [[4]]], 6)
    net = tower().train()
    net(Captions.of(batch))[Captions.of(batch).present].square().sum().backward()
    used = net.tokens.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_bad_input_is_named() -> None:
    with pytest.raises(ModelError, match=r"a caption has the token 30, the tower knows 30 \(text\.vocabulary\)"):
        tower()(pack_captions([[30]]))
    with pytest.raises(ModelError, match=r"a caption has 10 tokens, the tower takes 9 \(text\.max_tokens\)"):
        tower()(pack_captions([[1] * 10]))
    with pytest.raises(ModelError, match=r"no captions; index a source with captions and set plan\.text_tokens"):
        Captions.of(packed([[(1, 1)]], length=2, longest=2, images=1).to("cpu"))
    with pytest.raises(ModelError, match="2 captions, 1 of them empty"):
        pack_captions([[1], []])
    with pytest.raises(ModelError, match=r"text\.vocabulary = 0"):
        TextTower(TextConfig())
    with pytest.raises(ConfigError, match="a divisor of width = 192"):
        TextConfig(heads=5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device here")
@pytest.mark.parametrize("backend", ["torch_varlen", "flash_attn"])
def test_causal_gpu_kernels_equal_the_plain_one(backend: str) -> None:
    device = torch.device("cuda")
    try:
        choose(backend, device)
    except ModelError as e:
        pytest.skip(f"gpu: {e}")
    cu = torch.tensor([0, 3, 3, 4, 11, 16, 16], dtype=torch.int32, device=device)
    torch.manual_seed(0)
    base = [torch.randn(16, 2, 64, device=device, dtype=torch.bfloat16) for _ in range(4)]
    found = []
    for name in ("dense", backend):
        q, k, v = (x.clone().requires_grad_() for x in base[:3])
        out = attention(q, k, v, segments(cu, 16, 16, name, causal=True))  # type: ignore[arg-type]
        (out * base[3]).sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a.float(), b.float(), atol=3e-2)
