"""Real-time chunking: a flow draws a chunk that goes on from the chunk before, by guidance through its own Jacobian.

Source: arXiv:2506.07339 and Physical-Intelligence/real-time-chunking-kinetix@cc6c5f5:src/model.py, here in openpi's
time, from 1 (noise) to 0 (actions), with v = noise - actions:

    a = x - t v(x, t)                        what this step would make of the actions
    g = (da/dx)^T [(previous - a) * weights]  one vector-Jacobian product through the network
    v' = v - w(t) g,  w(t) = min(beta, (t^2 + (1 - t)^2) / (t (1 - t)))

Deliberate differences from others' code: huggingface/lerobot@7427f31 computes v before it asks for gradients, so its
Jacobian is the identity; here it is the network's. The first actions are not pinned: nobody executes them from the new
chunk. The prompt's keys and values get no gradient, so pruning it changes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlaprune.meter import attention_flops, decoder_flops
from vlaprune.models.paligemma import FlowConstants, PaliGemma, suffix_rows
from vlaprune.models.suffix import Read
from vlaprune.nn.backend import EAGER
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.expert import flow_times
from vlaprune.nn.extend import PromptKV, Suffix


def backward_flops(config: DecoderConfig, counts: Sequence[tuple[int, int]]) -> float:
    """FLOPs of a vector-Jacobian product through layers of (rows, columns), whose weights get no gradient.

    A linear layer's product comes once more. Each of attention's two comes twice more, since both of its sides depend
    on the rows.
    """
    inner = config.num_heads * config.head_dim
    return decoder_flops(config, counts) + sum(attention_flops(*shape, inner) for shape in counts)


def strength(time: float, beta: float) -> float:
    """w(t), how strongly a step at this time is guided; beta at the ends, where the quotient has no bound."""
    if not 0 < time < 1:
        return beta
    return min(beta, (time**2 + (1 - time) ** 2) / (time * (1 - time)))


def guided_velocity(
    velocity: Callable[[Tensor], Tensor], x: Tensor, time: float, previous: Tensor, weights: Tensor, beta: float
) -> Tensor:
    """The guided velocity v' at actions x [B, chunk, n] of one time.

    velocity  v of x, differentiable
    previous  [B, chunk, n] the actions to go on from
    weights   [B, chunk, n] how much each counts, 0 to 1
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x)
        actions = x - time * v
        error = ((previous - actions) * weights).detach()
        (gradient,) = torch.autograd.grad(actions, x, error)
    return v.detach() - strength(time, beta) * gradient


def sample(
    velocity: Callable[[Tensor, int], Tensor], noise: Tensor, steps: int, previous: Tensor, weights: Tensor, beta: float
) -> Tensor:
    """Actions [B, chunk, n] from noise of that shape by guided Euler steps; `velocity` of x and the step's number."""
    x = noise
    for step, time in enumerate(flow_times(steps).tolist()):

        def at(y: Tensor, step: int = step) -> Tensor:
            return velocity(y, step)

        x = x - guided_velocity(at, x, time, previous, weights, beta) / steps
    return x


def plain(tree: object) -> object:
    """Copies the tensors in nested tuples and lists, so that autograd may use tensors made in inference mode."""
    if isinstance(tree, Tensor):
        return tree.clone()
    return [plain(item) for item in tree] if isinstance(tree, list | tuple) else tree


def denoise_guided(
    net: PaliGemma,
    constants: FlowConstants,
    layers: Sequence[int],
    noise: Tensor,
    state: Tensor | None,
    prompt: PromptKV,
    lengths: Sequence[int],
    previous: Tensor,
    weights: Tensor,
    beta: float,
) -> tuple[Tensor, list[list[Read]]]:
    """Actions and reads as `paligemma.denoise` gives them, but guided. Not compiled or captured.

    pi0's state row is computed anew in every step.
    """
    with torch.inference_mode(False):
        prompt, times, modulations = (plain(t) for t in (prompt, constants.times, constants.modulations))  # type: ignore[assignment]
        noise, state, previous, weights = (plain(t) for t in (noise, state, previous, weights))  # type: ignore[assignment]
        chunk = noise.shape[1]
        dtype = net.projector.weight.dtype
        prefix = 0 if state is None else 1
        reads: list[list[Read]] = [[] for _ in layers]

        def velocity(x: Tensor, step: int) -> Tensor:
            now = None if modulations is None else [m[step] for m in modulations]  # type: ignore[attr-defined]
            rows = suffix_rows(net, x, times[step], state, dtype)  # type: ignore[index]
            suffix = Suffix(net.expert.blocks, prompt, lengths, chunk + prefix, EAGER)
            out, queries = suffix.extend(rows, 0, prefix, now)
            for read, layer in zip(reads, layers, strict=True):
                keys = [kv[0].detach() for kv in suffix.buffers[layer]]
                read.append((queries[layer][:, :, -chunk:].detach(), keys))
            last = net.expert.normalise(out, None if now is None else now[-1]).unflatten(0, (x.shape[0], -1))
            return net.action_out(last[:, -chunk:].float())

        return sample(velocity, noise, len(constants.times), previous, weights, beta), reads
