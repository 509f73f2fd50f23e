"""bf16 is what every large model computes in: positions and norms are exact in fp32 and rounded once."""

import pytest
import torch
import torch.nn.functional as F

from vlaprune.nn.block import DecoderConfig, RMSNorm, rope
from vlaprune.nn.decoder import Decoder, NullHooks, Tokens
from vlaprune.nn.expert import AdaNorm
from vlaprune.nn.extend import Suffix

SHAPE = DecoderConfig(64, 2, 4, 2, 16, 96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_tables_are_those_of_exact_positions_rounded_once(dtype):
    """Above 256 bf16 has no odd numbers: a position that was rounded would turn a row by a wrong angle."""
    index = torch.arange(640)
    half = torch.arange(0, 16, 2, dtype=torch.float64)
    phase = index[:, None].double() / SHAPE.rope_theta ** (half / 16)
    for table, exact in zip(rope(SHAPE, index, dtype), (phase.cos(), phase.sin()), strict=True):
        assert table.dtype == dtype and (table[:, 8:].double() - exact).abs().max() < torch.finfo(dtype).eps
    assert len({tuple(row.tolist()) for row in rope(SHAPE, index, dtype)[1]}) == 640


def test_rows_behind_a_long_prompt_turn_by_exact_positions():
    kv = torch.zeros(2, 3, 16, dtype=torch.bfloat16)
    suffix = Suffix(Decoder(SHAPE).blocks, [[(kv, kv, None)]] * 2, [601, 598], 4)
    for i, length in enumerate((601, 598)):
        for ours, exact in zip(
            suffix.tables, rope(SHAPE, torch.arange(length, length + 4), torch.float32), strict=True
        ):
            assert torch.equal(ours[i], exact.bfloat16())


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_a_decoder_in_bf16_tells_neighbours_apart_behind_position_256(packed):
    """Equal rows at 400 and 401: their queries must meet the key at 399 at different angles, alone and packed."""
    torch.manual_seed(0)
    decoder = Decoder(SHAPE).bfloat16().eval()
    near, far = (torch.arange(n, n + 12) for n in (0, 400))
    x = torch.randn(12, 64).bfloat16()
    count = 2 if packed else 1
    here, there = (decoder([Tokens(x, at)] * count, [NullHooks()] * count)[-1].float() for at in (near, far))
    assert (here - there).abs().max() < 0.1 * here.abs().max()  # attention depends on differences of positions only


@torch.no_grad()
def test_norms_of_gemma_are_computed_in_fp32_and_rounded_once():
    torch.manual_seed(0)
    x = (torch.randn(50, 64) * 3).bfloat16()
    norm = RMSNorm(64, 1e-6, plus_one=True)
    torch.nn.init.normal_(norm.weight, std=0.3)
    exact = F.rms_norm(x.double(), (64,), 1 + norm.weight.double(), 1e-6)
    assert torch.equal(norm(x), exact.bfloat16())
    assert not torch.equal(F.rms_norm(x, (64,), (1 + norm.weight).bfloat16(), 1e-6), exact.bfloat16())


@torch.no_grad()
def test_adaptive_norms_are_computed_in_fp32_and_rounded_once():
    torch.manual_seed(0)
    x, modulation = (torch.randn(50, 64) * 3).bfloat16(), torch.randn(192) * 0.3
    scale, shift, gate = modulation.double().chunk(3)
    rows, given = AdaNorm(64, 1e-6)(x, modulation)
    exact = F.rms_norm(x.double(), (64,), 1 + scale, 1e-6) + shift
    assert (rows == exact.bfloat16()).float().mean() > 0.999 and torch.equal(given, gate.bfloat16())


@torch.no_grad()
def test_norms_of_llama_round_before_the_weight_as_transformers_does():
    torch.manual_seed(0)
    x, norm = (torch.randn(50, 64) * 3).bfloat16(), RMSNorm(64, 1e-6).bfloat16()
    torch.nn.init.normal_(norm.weight)
    exact = F.rms_norm(x.double(), (64,), None, 1e-6).bfloat16() * norm.weight
    assert (norm(x) == exact).float().mean() > 0.999
