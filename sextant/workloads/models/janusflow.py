"""JanusFlow, 1.3 B: images by a rectified flow through the language model, 30 Euler steps with guidance."""

from dataclasses import replace

from sextant.workloads.generation import Flow
from sextant.workloads.models.deepseek_vl import MODEL_1_3B, SIGLIP_L
from sextant.workloads.vision import Vision

_CODE = "deepseek-ai/Janus, janus/janusflow/models"

MODELS = (
    replace(
        MODEL_1_3B,
        name="janusflow-1.3b",
        system="JanusFlow",
        vision=Vision(
            encoders={"siglip": SIGLIP_L}, projector="linear", begin_tokens=1.0,
            source={"projector": f"{_CODE}/modeling_vlm.py", "begin_tokens": f"{_CODE}/modeling_vlm.py"},
        ),
        generation=Flow(
            source={
                "": f"{_CODE}/uvit.py and modeling_vlm.py",
                "n_steps": "deepseek-ai/Janus demo/app_janusflow.py: 30 Euler steps, guidance on",
                "blocks": "unconfirmed: two blocks each way, the default of the code; the published file size agrees",
                "patch": "unconfirmed: kernels of 2 x 2 that do not overlap; demo/app_janusflow.py halves the latent",
                "decoder_channels": "SDXL-VAE, a checkpoint of its own, which is not counted in the model's",
            }
        ),
        official={"checkpoint_bytes": 4.09e9},
        source={
            "": "unconfirmed: the language model of DeepSeek-LLM 1.3B as in Janus; it gives the published file size to "
            "its last digit",
            "official.checkpoint_bytes": "huggingface.co/deepseek-ai/JanusFlow-1.3B, sizes of the files, 16 bits",
        },
    ),
)  # fmt: skip
