"""An existing policy of transformers, taken over: its own vision and embedding code, its decoder replaced by name.

The policy is a `LlavaForConditionalGeneration` that emits one action token behind its prompt; here with a Qwen2 as its
language model. Nothing of it is changed but what computes its layers.
"""

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from vlaprune.benchmark import Interface
from vlaprune.call import stage
from vlaprune.nn.backend import EAGER
from vlaprune.nn.decoder import Decoder, Tokens
from vlaprune.nn.weights import StateDict, decoder_config, llama_weight_map, load_weights
from vlaprune.pruner import ModelInfo
from vlaprune.testing import flop_counter
from vlaprune.trace import Layout, View


class Takeover:
    """theirs: the policy; ids: instruction -> token ids with theirs.config.image_token_id for each visual token."""

    chunk = 1

    def __init__(self, theirs: LlavaForConditionalGeneration, ids):
        self.theirs, self.ids, self.device, self.backend = theirs.eval(), ids, torch.device("cpu"), EAGER
        language = theirs.model.language_model
        config = decoder_config(language.config.to_dict())
        with torch.device("meta"):
            self.decoder = Decoder(config).eval()
        where = llama_weight_map(config, "", "")
        load_weights(self.decoder, StateDict(language.state_dict()), where, ("embed_tokens.",), dtype=torch.float32)
        language.layers = torch.nn.ModuleList()  # frees them: from here on only ours exist
        self.info = ModelInfo("takeover", config.num_layers, config.num_heads, config.hidden_size, config.head_dim)
        self.interface = Interface("axis_angle", "close_positive", "delta", ("main",), None)

    @torch.inference_mode()
    def logits(self, observations, sessions):
        """Logits [1, vocabulary] of the first action token, per observation."""
        calls, prompts = [], []
        for observation, session in zip(observations, sessions, strict=True):
            ids = torch.tensor(self.ids(observation.instruction))
            at = (ids == self.theirs.config.image_token_id).nonzero()[:, 0]
            start, total, length = int(at[0]), len(at), len(ids)
            side = int(total**0.5)
            views = (View("main", 0, side, side),)
            visual, text = range(start, start + total), range(start + total, length)
            layout = Layout(length, visual, text, range(length - 1, length), length - 1, views)
            image = torch.from_numpy(np.ascontiguousarray(observation.images["main"]))
            prompt = self.theirs.get_input_embeddings()(ids).clone()
            call = session.begin(layout, (image,), prompt)
            with flop_counter() as counted, stage([call], "vision"):  # their code: count what it computes
                pixels = (image.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
                prompt[at] = torch.cat(list(self.theirs.get_image_features(pixel_values=pixels).pooler_output))
            call.charge("vision", counted.get_total_flops())
            calls.append(call)
            prompts.append(Tokens(prompt, torch.arange(length)))
        with stage(calls, "prompt"):
            rows = self.decoder(prompts, calls, self.backend)
        head = self.theirs.lm_head
        with stage(calls, "head", 2.0 * head.weight.numel()):
            return [head(own[-1:]) for own in rows]

    def predict(self, observations, sessions):
        """One [1, 7] per observation: the token's bin of [-1, 1], for every number alike."""
        bins = self.theirs.lm_head.out_features
        return [own.argmax(-1).expand(7)[None] / (bins - 1) * 2.0 - 1.0 for own in self.logits(observations, sessions)]
