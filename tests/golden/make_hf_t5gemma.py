"""Makes `hf_t5gemma/`: a tiny random T5Gemma of `transformers`, and what it computes.

    python tests/golden/make_hf_t5gemma.py     # with torch and transformers, float32, CPU

Every option is on and off its default: two widths, grouped and single key heads, a window of 5
shorter than the longest inputs, both caps low enough to bend, a scale and a theta of its own.

T5Gemma was released with encoders that see |i - j| < window, as transformers 4 has it. The mask
that version 5 shares between models has |i - j| <= window, so its encoder is given one less here.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

DIRECTORY = Path(__file__).parent / "hf_t5gemma"
COMMON = {
    "vocab_size": 96,
    "query_pre_attn_scalar": 6,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 2.0,
    "sliding_window": 5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "attn_implementation": "eager",
}


def module(**widths):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers")
    heads = ("num_attention_heads", "num_key_value_heads", "head_dim")
    return T5GemmaModuleConfig(**COMMON, **{n: widths[n] for n in (*names, *heads)})


def model():
    config = T5GemmaConfig(
        encoder=module(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
        ),
        decoder=module(
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
        ),
        vocab_size=96,
        attn_implementation="eager",
    )
    made = T5GemmaForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            size = 0.3 if "norm" in name else parameter.shape[-1] ** -0.5
            if "embed" in name:  # small, so that answers do not repeat their last token
                size *= 0.4
            parameter.copy_(drawn * size)
    return made


def main():
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 96, (4, 13))
    lengths = np.array([13, 9, 4, 1])
    inputs[:, 0] = 2
    attention = (np.arange(13) < lengths[:, None]).astype(np.int64)
    inputs *= attention
    labels = rng.integers(3, 96, (4, 11))
    weights = (np.arange(11) < np.array([11, 7, 3, 11])[:, None]).astype(np.int64)
    labels *= weights
    shifted = np.concatenate([np.full((4, 1), 2), labels[:, :-1]], axis=1)

    made = model()
    DIRECTORY.mkdir(exist_ok=True)
    made.save_pretrained(DIRECTORY)
    made.model.encoder.config.sliding_window -= 1
    logits = made(
        input_ids=torch.tensor(inputs),
        attention_mask=torch.tensor(attention),
        decoder_input_ids=torch.tensor(shifted),
        decoder_attention_mask=torch.tensor(weights),
    ).logits
    log_probs = torch.log_softmax(logits, -1)
    chosen = log_probs.gather(-1, torch.tensor(labels)[..., None])[..., 0]
    (-(chosen * torch.tensor(weights)).sum()).backward()
    gradients = {f"grad/{n}": p.grad.numpy() for n, p in made.named_parameters()}

    ask = {
        "input_ids": torch.tensor(inputs),
        "attention_mask": torch.tensor(attention),
        "max_new_tokens": 12,
        "do_sample": False,
    }
    greedy = made.generate(**ask).numpy()
    beams = made.generate(**ask, num_beams=4, length_penalty=0.0, early_stopping="never").numpy()
    np.savez_compressed(
        DIRECTORY / "expected.npz",
        inputs=inputs,
        decoder_inputs=shifted,
        labels=labels,
        weights=weights,
        logits=logits.detach().numpy(),
        greedy=greedy,
        beams=beams,
        **gradients,
    )


if __name__ == "__main__":
    main()
