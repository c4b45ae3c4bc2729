"""Node "AsynDM Demo Model": the two small models that ship with the pack, made of ComfyUI's own classes.

MODEL, CLIP and VAE behave like those of any checkpoint, so every node that takes them works, and asynchronous sampling
can be seen without a download. Nothing is loaded before the node is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy_api.latest import io
from torch import Tensor

from ..demo import config
from ..demo.vae import DemoVAE
from .types import CATEGORY

# --- MODEL -----------------------------------------------------------------------------------------------------------


class DemoOperations(comfy.ops.manual_cast):
    """ComfyUI's layers, with the demo model's number of groups where the UNet would ask for 32."""

    class GroupNorm(comfy.ops.manual_cast.GroupNorm):
        """Group norm of `config.NORM_GROUPS` groups."""

        def __init__(self, num_groups: int, num_channels: int, **options: Any) -> None:
            super().__init__(config.NORM_GROUPS, num_channels, **options)


class DemoLatents(comfy.latent_formats.LatentFormat):
    """12 channels of unit spread; the preview colours come with the weights."""

    latent_channels = config.LATENT_CHANNELS

    def __init__(self, factors: Tensor, bias: Tensor) -> None:
        self.latent_rgb_factors = factors.tolist()
        self.latent_rgb_factors_bias = bias.tolist()


class DemoConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model family, for a network of this configuration."""

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    memory_usage_factor = 1.0

    def __init__(self, network: dict[str, Any], latent_format: DemoLatents) -> None:
        self.latent_format = lambda: latent_format
        super().__init__(network)
        self.set_inference_dtype(torch.float32, None)

    def inpaint_model(self) -> bool:
        """No: the 12 channels are all latents."""
        return False


class DemoUNetConfig(DemoConfig):
    """Of the UNet."""

    custom_operations = DemoOperations

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        """The model predicts v."""
        return comfy.model_base.ModelType.V_PREDICTION


class DemoTransformerConfig(DemoConfig):
    """Of the transformer: it is told sigma itself, as Flux schnell is."""

    sampling_settings: ClassVar[dict[str, float]] = {"multiplier": 1.0, "shift": 1.0}

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> comfy.model_base.Flux:
        """The model predicts the flow's velocity."""
        return comfy.model_base.Flux(self, comfy.model_base.ModelType.FLOW, device)


def unet_state(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's weights by ComfyUI's names instead of diffusers'."""
    names = comfy.utils.unet_to_diffusers(config.comfy_unet_config())
    return {names[name]: value for name, value in unet.items()}


def transformer_state(transformer: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's weights by ComfyUI's names instead of diffusers': several make up one, each from its own row on."""
    names = comfy.utils.flux_to_diffusers(config.comfy_transformer_config())
    parts: dict[str, dict[int, Tensor]] = {}
    for name, value in transformer.items():
        target, rows, change = (names[name], None, None) if isinstance(names[name], str) else (*names[name], None)[:3]
        parts.setdefault(target, {})[rows[1] if rows else 0] = change(value) if change else value
    return {target: torch.cat([part for _, part in sorted(found.items())]) for target, found in parts.items()}


def _load_model(settings: DemoConfig, state: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    offload_device = comfy.model_management.unet_offload_device()
    model = settings.get_model(state, device=offload_device)
    model.diffusion_model.load_state_dict(state)
    load_device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)


# --- CLIP ------------------------------------------------------------------------------------------------------------


class DemoTokenPieces(comfy.sd1_clip.SDTokenizer):
    """The demo model's own vocabulary: every word of its world is one token."""

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(
            tokenizer_path=str(config.TOKENIZER),
            max_length=config.MAX_TOKENS,
            embedding_directory=embedding_directory,
            embedding_size=config.TEXT_WIDTH,
            tokenizer_data=tokenizer_data or {},
        )


class DemoTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """Weights, embeddings and chunks of 77 tokens, as for Stable Diffusion."""

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=DemoTokenPieces)


class DemoTextModel(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model with a vocabulary of another size."""

    def __init__(self, config_dict: dict[str, Any], dtype: torch.dtype | None, device: Any, operations: Any) -> None:
        super().__init__(config_dict, dtype, device, operations)
        vocabulary, width = config_dict["vocab_size"], config_dict["hidden_size"]
        self.set_input_embeddings(operations.Embedding(vocabulary, width, dtype=dtype, device=device))


class DemoTextEncoder(comfy.sd1_clip.SDClipModel):
    """The text encoder: the last hidden state, after the final layer norm."""

    def __init__(
        self, device: Any = "cpu", dtype: torch.dtype | None = None, model_options: dict[str, Any] | None = None
    ) -> None:
        text = config.text_config()
        super().__init__(
            device=device,
            max_length=config.MAX_TOKENS,
            textmodel_json_config=text,
            dtype=dtype,
            model_class=DemoTextModel,
            special_tokens={"start": text["bos_token_id"], "end": text["eos_token_id"], "pad": text["pad_token_id"]},
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class DemoClipModel(comfy.sd1_clip.SD1ClipModel):
    """The text encoder under the name that ComfyUI's SD1 conditioning uses. Neither network learned from pooled text: zeros."""

    def __init__(
        self, device: Any = "cpu", dtype: torch.dtype | None = None, model_options: dict[str, Any] | None = None
    ) -> None:
        super().__init__(device, dtype, model_options or {}, clip_model=DemoTextEncoder)

    def encode_token_weights(self, token_weight_pairs: Any) -> tuple[Any, ...]:
        """The text's states, pooled text, and what else ComfyUI's has."""
        states, pooled, *more = super().encode_token_weights(token_weight_pairs)
        return (states, torch.zeros_like(pooled), *more)


def _load_clip(text: dict[str, Tensor]) -> comfy.sd.CLIP:
    state = {"text_model." + name: value for name, value in text.items()}
    state["text_projection.weight"] = torch.eye(config.TEXT_WIDTH)
    target = comfy.supported_models_base.ClipTarget(DemoTokenizer, DemoClipModel)
    parameters = sum(value.numel() for value in state.values())
    return comfy.sd.CLIP(target, parameters=parameters, state_dict=[state])


# --- VAE -------------------------------------------------------------------------------------------------------------

_SMALLEST_KL: dict[str, Any] = {
    "embed_dim": config.LATENT_CHANNELS,
    "ddconfig": {
        "double_z": True,
        "z_channels": config.LATENT_CHANNELS,
        "resolution": config.PICTURE_SIZE,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1],
        "num_res_blocks": 0,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}
"""The smallest autoencoder that ComfyUI builds: its VAE object is set up around it before ours takes its place."""


class DemoVAEObject(comfy.sd.VAE):
    """ComfyUI's VAE object around the demo model's autoencoder: factor 8, 12 channels, float32."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        stand_in = AutoencoderKL(**_SMALLEST_KL).state_dict()
        super().__init__(sd=stand_in, config={"params": _SMALLEST_KL}, dtype=torch.float32)
        autoencoder = DemoVAE()
        autoencoder.load_state_dict(state)
        self.first_stage_model = autoencoder.eval().requires_grad_(False)
        self.latent_channels = config.LATENT_CHANNELS
        self.working_dtypes = [torch.float32]
        self.disable_offload = True
        self.size = None
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.model_size()


# --- the node --------------------------------------------------------------------------------------------------------


NETWORKS = ("unet", "transformer")


def load_demo_model(network: str = NETWORKS[0]) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Load a demo model from demo/weights: MODEL, CLIP, VAE. network: one of ``NETWORKS``.

    Raises FileNotFoundError where the weights are missing: the pack was then copied without its demo folder.
    """
    shared = _load_file(config.WEIGHTS)
    latents = DemoLatents(shared["preview.factors"].float(), shared["preview.bias"].float())
    vae = DemoVAEObject(config.part_of(shared, "vae."))
    if network == "transformer":
        own = _load_file(config.TRANSFORMER_WEIGHTS)
        settings: DemoConfig = DemoTransformerConfig(config.comfy_transformer_config(), latents)
        state = transformer_state(config.part_of(own, "transformer."))
    else:
        own = shared
        settings = DemoUNetConfig(config.comfy_unet_config(), latents)
        state = unet_state(config.part_of(own, "unet."))
    return _load_model(settings, state), _load_clip(config.part_of(own, "text_encoder.")), vae


def _load_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"AsynDM Demo Model: {path.name} is not in the pack's folder demo/weights. "
            "Install the pack again, with its demo folder."
        )
    return comfy.utils.load_torch_file(str(path), safe_load=True)


class DemoModel(io.ComfyNode):
    """The model that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and their order are append-only."""
        return io.Schema(
            node_id="AsynDM_DemoModel",
            display_name="AsynDM Demo Model",
            category=CATEGORY,
            description=(
                "A small text-to-image model that ships with the pack, for trying asynchronous denoising at once: "
                "128 x 128 pictures of simple scenes in about a second on a CPU. It knows a few dozen words, such as "
                '"a green boat on the sea under two moons". Use an Empty Latent Image of 128 x 128.'
            ),
            inputs=[
                io.Combo.Input(
                    "network",
                    options=list(NETWORKS),
                    default=NETWORKS[0],
                    optional=True,
                    tooltip=(
                        "unet: like Stable Diffusion 1.5 and SDXL. transformer: like Flux, small; it reads words and picture "
                        "in one attention and matches a flow, as most models of today do. Use the clip and the vae of the "
                        "same node."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
            ],
        )

    @classmethod
    def execute(cls, network: str = NETWORKS[0]) -> io.NodeOutput:
        """Load and return MODEL, CLIP and VAE."""
        return io.NodeOutput(*load_demo_model(network))
