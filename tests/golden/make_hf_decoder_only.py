"""Makes `hf_decoder_only/`: tiny random decoder-only models of `transformers`, and their numbers.

    python tests/golden/make_hf_decoder_only.py     # with torch and transformers, float32, CPU

Each has a folder of its type. Options are on and off their defaults: grouped heads whose sizes do
not add up to the model's width, windows shorter than the longest row, caps low enough to bend,
scaled positions, thetas and scales of their own.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

DIRECTORY = Path(__file__).parent / "hf_decoder_only"
COMMON = {
    "vocab_size": 48,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
    "max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0}
THETA = {"rope_type": "default", "rope_theta": 500.0}
SLIDES = "sliding_attention"
OPTIONS = {
    "gemma": {"num_hidden_layers": 1, "head_dim": 6, "rope_parameters": THETA},
    "gemma2": {
        "num_hidden_layers": 3,
        "head_dim": 6,
        "query_pre_attn_scalar": 7,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 2.0,
        "sliding_window": 5,
        "rope_parameters": THETA,
        "rms_norm_eps": 1e-5,
    },
    "gemma3_text": {
        "num_hidden_layers": 4,
        "head_dim": 6,
        "query_pre_attn_scalar": 7,
        "final_logit_softcapping": 2.0,
        "sliding_window": 4,
        "layer_types": [SLIDES, SLIDES, "full_attention", SLIDES],
        "rope_parameters": {"full_attention": LINEAR, SLIDES: THETA},
        "num_key_value_heads": 1,
    },
    "llama": {"num_hidden_layers": 1, "head_dim": 4, "rope_parameters": LINEAR},
    "qwen2": {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "rope_parameters": THETA,
        "tie_word_embeddings": True,
    },
    "qwen3": {"num_hidden_layers": 1, "head_dim": 6, "rope_parameters": THETA},
}


def model(kind):
    config = AutoConfig.for_model(kind, **{**COMMON, **OPTIONS[kind]})
    made = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
    return made


def main():
    rng = np.random.default_rng(0)
    # Gemma's embedding has no gradient at id 0 in torch, where it stands for padding.
    ids = rng.integers(3, 48, (3, 11))
    lengths = np.array([11, 7, 3])
    real = (np.arange(11) < lengths[:, None]).astype(np.int64)
    # The targets are each row's last tokens, behind two of the inputs.
    weights = real * (np.arange(11) >= 2)
    for kind in OPTIONS:
        made = model(kind)
        made.save_pretrained(DIRECTORY / kind)
        logits = made(input_ids=torch.tensor(ids), attention_mask=torch.tensor(real)).logits
        log_probs = torch.log_softmax(logits[:, :-1], -1)
        chosen = log_probs.gather(-1, torch.tensor(ids)[:, 1:, None])[..., 0]
        (-(chosen * torch.tensor(weights)[:, 1:]).sum()).backward()
        gradients = {f"grad/{n}": p.grad.numpy() for n, p in made.named_parameters()}
        np.savez_compressed(
            DIRECTORY / kind / "expected.npz",
            ids=ids,
            real=real,
            weights=weights,
            logits=logits.detach().numpy(),
            **gradients,
        )


if __name__ == "__main__":
    main()
