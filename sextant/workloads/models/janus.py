"""Janus, 1.3 B: the scheme of Janus-Pro with the language model of DeepSeek-LLM 1.3B."""

from dataclasses import replace

from sextant.workloads.models.deepseek_vl import MODEL_1_3B
from sextant.workloads.models.janus_pro import GENERATION, VISION

MODELS = (
    replace(
        MODEL_1_3B,
        name="janus-1.3b",
        system="Janus",
        vision=VISION,
        generation=GENERATION,
        official={"checkpoint_bytes": 4.18e9},
        source={
            "": "unconfirmed: the dimensions of Janus-Pro-1B; they give the published file size to its last digit",
            "official.checkpoint_bytes": "huggingface.co/deepseek-ai/Janus-1.3B, sizes of the files, 16 bits",
        },
    ),
)
