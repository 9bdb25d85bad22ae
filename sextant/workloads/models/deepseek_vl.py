"""DeepSeek-VL, 1.3 B and 7 B: a dense language model that sees 576 tokens per image.

1.3B looks at 384 pixels (SigLIP-L), 7B also at 1,024 (SAM-B). Both models, Janus and Janus-Pro share SigLIP-L and the
language models of DeepSeek-LLM's family.
"""

from dataclasses import replace

from sextant.workloads.transformer import Transformer
from sextant.workloads.vision import Encoder, Vision

_SAM_SOURCE = "transformers convert_deepseek_vl_hybrid_weights_to_hf.py; DeepSeek-VL sam.py"

#: Checkpoints store the attention pooling of SigLIP and never run it: the published file sizes hold it.
SIGLIP_L = Encoder(
    hidden_size=1024.0, num_hidden_layers=24.0, num_attention_heads=16.0, intermediate_size=4096.0, image_size=384.0,
    patch_size=16.0, pooling_head=True,
)  # fmt: skip

SAM_B = Encoder(
    hidden_size=768.0, num_hidden_layers=12.0, num_attention_heads=12.0, intermediate_size=3072.0, image_size=1024.0,
    patch_size=16.0, window_size=14.0, global_attn_indexes=(2.0, 5.0, 8.0, 11.0), output_channels=256.0,
    downsample_channels=(512.0, 1024.0),
)  # fmt: skip

_SIGLIP_SOURCE = {"encoders.siglip": "SigLIP-L/16-384: transformers convert_deepseek_vl_weights_to_hf.py"}

MODEL_1_3B = Transformer(
    name="deepseek-vl-1.3b",
    system="DeepSeek-VL",
    attention="gqa",
    hidden_size=2048.0,
    num_hidden_layers=24.0,
    num_attention_heads=16.0,
    num_key_value_heads=16.0,
    head_dim=128.0,
    vocab_size=102400.0,
    intermediate_size=5632.0,
    vision=Vision(encoders={"siglip": SIGLIP_L}, projector="mlp", source=_SIGLIP_SOURCE),
    official={"checkpoint_bytes": 3.95e9},
    source={
        "": "unconfirmed: 24 layers, width 2048, 16 heads, inner width 5632, vocabulary 102400 as Janus-Pro-1B; they "
        "give the published file size to its last digit",
        "official.checkpoint_bytes": "huggingface.co/deepseek-ai/deepseek-vl-1.3b-base, sizes of the files, 16 bits",
    },
)

MODEL_7B = replace(
    MODEL_1_3B,
    name="deepseek-vl-7b",
    hidden_size=4096.0,
    num_hidden_layers=30.0,
    num_attention_heads=32.0,
    num_key_value_heads=32.0,
    intermediate_size=11008.0,
    vision=Vision(
        encoders={"siglip": SIGLIP_L, "sam": SAM_B}, projector="split_mlp",
        source={**_SIGLIP_SOURCE, "encoders.sam": _SAM_SOURCE, "projector": _SAM_SOURCE},
    ),
    official={},
    source={"": "transformers convert_deepseek_vl_hybrid_weights_to_hf.py"},
)  # fmt: skip

MODELS = (MODEL_1_3B, MODEL_7B)
