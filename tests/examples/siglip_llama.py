"""A model of one's own: SigLIP and a Llama of transformers, the Llama run by vlaprune's decoder, which can be pruned.

Prompt: visual tokens | words. The last row gives the action. Causal, as the Llama was trained.
"""

import numpy as np
import torch
from torch import nn
from transformers import LlamaModel, SiglipVisionModel

from vlaprune.benchmark import Interface
from vlaprune.call import stage
from vlaprune.meter import linear_flops, vit_block_flops
from vlaprune.nn.backend import EAGER
from vlaprune.nn.decoder import Decoder, Tokens
from vlaprune.nn.weights import StateDict, decoder_config, llama_weight_map, load_weights
from vlaprune.pruner import ModelInfo
from vlaprune.trace import Layout, View


class SiglipLlama:
    """vision, llama: of transformers; projector, head: [SigLIP -> Llama], [Llama -> 7]; tokenize: text -> ids."""

    chunk = 1

    def __init__(self, vision: SiglipVisionModel, llama: LlamaModel, projector: nn.Linear, head: nn.Linear, tokenize):
        self.vision, self.words, self.projector, self.head = vision, llama.embed_tokens, projector, head
        self.tokenize, self.device, self.backend = tokenize, projector.weight.device, EAGER
        config = decoder_config(llama.config.to_dict())
        with torch.device("meta"):
            self.decoder = Decoder(config).eval()
        # names of transformers -> ours; `embed_tokens` stays here. Any other tensor left over is an error.
        where = llama_weight_map(config, "", "")
        load_weights(self.decoder, StateDict(llama.state_dict()), where, ("embed_tokens.",), dtype=torch.float32)
        self.info = ModelInfo("siglip_llama", config.num_layers, config.num_heads, config.hidden_size, config.head_dim)
        self.interface = Interface("axis_angle", "close_positive", "delta", ("main",), None)

    @torch.inference_mode()
    def predict(self, observations, sessions):
        """One [1, 7] per observation."""
        shape = self.vision.config
        side = shape.image_size // shape.patch_size
        calls, prompts = [], []
        for observation, session in zip(observations, sessions, strict=True):
            ids = self.tokenize(observation.instruction)
            total, length = side**2, side**2 + len(ids)
            layout = Layout(  # where things are: this is what methods see
                length=length,
                visual=range(total),
                text=range(total, length),
                action=range(length - 1, length),
                last=length - 1,
                views=(View("main", 0, side, side),),
            )
            image = torch.from_numpy(np.ascontiguousarray(observation.images["main"]))
            call = session.begin(layout, (image,), self.projector.weight)  # opens the call; its hooks go to the decoder
            with stage([call], "vision", self.vision_flops(total)):
                pixels = (image.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
                features = self.vision(pixel_values=pixels).last_hidden_state[0]
            with stage([call], "projector", linear_flops(total, *self.projector.weight.T.shape)):
                visual = self.projector(features)
            prompt = torch.cat((visual, self.words(torch.tensor(ids))))
            calls.append(call)
            prompts.append(Tokens(prompt, torch.arange(length)))
        with stage(calls, "prompt"):
            rows = self.decoder(prompts, calls, self.backend)
        with stage(calls, "head", linear_flops(1, *self.head.weight.T.shape)):
            return [self.head(own[-1:]) for own in rows]

    def vision_flops(self, tokens: int) -> float:
        """Of SigLIP on one picture."""
        c = self.vision.config
        patch = linear_flops(tokens, c.num_channels * c.patch_size**2, c.hidden_size)
        return patch + c.num_hidden_layers * vit_block_flops(tokens, c.hidden_size, c.intermediate_size)
