"""Janus-Pro, 1 B and 7 B: one encoder to understand images, a codebook to make them, one language model between."""

from dataclasses import replace

from sextant.workloads.generation import Codebook
from sextant.workloads.models.deepseek_vl import MODEL_1_3B, MODEL_7B, SIGLIP_L
from sextant.workloads.vision import Vision

_REPORT = "Janus-Pro report (deepseek-ai/Janus, janus_pro_tech_report.pdf)"

VISION = Vision(
    encoders={"siglip": SIGLIP_L},
    projector="mlp",
    source={"encoders.siglip": f"SigLIP-L/16-384: {_REPORT} s3.1", "projector": "config of Janus-Pro-7B copies"},
)
GENERATION = Codebook(
    source={"": f"{_REPORT} s3.1; deepseek-ai/Janus vq_model.py and generation_inference.py"},
)

MODELS = (
    replace(
        MODEL_1_3B,
        name="janus-pro-1b",
        system="Janus-Pro",
        vision=VISION,
        generation=GENERATION,
        official={},
        source={
            "": f"{_REPORT} Table 1",
            "intermediate_size": "5632: a one-layer copy that keeps the other dimensions (pruna-test/tiny_janus)",
        },
    ),
    replace(
        MODEL_7B,
        name="janus-pro-7b",
        system="Janus-Pro",
        vision=VISION,
        generation=GENERATION,
        official={"checkpoint_bytes": 14.84e9},
        source={
            "": f"{_REPORT} Table 1",
            "intermediate_size": "11008: config of a derivative (YhangChen/iris-step600)",
            "official.checkpoint_bytes": "huggingface.co/wnma3mz/Janus-Pro-7B, sizes of the files, 16 bits",
        },
    ),
)
