"""A trained retriever and its tower as one state dict under transformers' names, for the authors' code."""

import torch
from transformers import Blip2VisionModel

from cirray.core.errors import ArtifactError
from cirray.models.composed import QFormerRetriever
from cirray.models.conversion import Sizes
from cirray.models.conversion_files import Record
from cirray.models.towers.hf_blip2 import VisionTower

FORMAT, WRAPPER = "ptha", "Blip2Qformer4TGIRCESIM"


def retriever_tensors(retriever: QFormerRetriever, tower: VisionTower) -> tuple[dict[str, torch.Tensor], Record]:
    """State dict for `write_original`: a PTHA checkpoint (SPRC's lacks the unused matching head).

    Raises ArtifactError for another tower than BLIP-2's, or when its last LayerNorm has an affine part, which LAVIS'
    layout cannot hold.
    """
    if not isinstance(tower.model, Blip2VisionModel):
        raise ArtifactError(
            f"The retriever is trained over a {type(tower.model).__name__}; LAVIS' layout holds BLIP-2's vision tower "
            "alone. Use `cirray export`."
        )
    norm = tower.model.post_layernorm
    if not (torch.all(norm.weight == 1) and torch.all(norm.bias == 0)):
        raise ArtifactError(
            "The vision tower ends in a LayerNorm with weights of its own and the retriever begins with another; LAVIS "
            "has one. Only retrievers on towers read from BLIP-2 or InstructBLIP can be written in its format."
        )
    tensors = {_name(name): value.detach().cpu() for name, value in retriever.state_dict().items()}
    tensors["prompt_tokens"] = tensors.pop("prompts")[None]
    tensors["temperature"] = tensors.pop("raw_temperature").reshape(())
    for name, value in tower.model.state_dict().items():
        if not name.startswith("post_layernorm."):
            tensors[f"vision_model.{name}"] = value.detach().cpu()
    return tensors, Record(FORMAT, _sizes(retriever, tower), WRAPPER, {"epoch": 0}, position_ids=True)


def _name(own: str) -> str:
    if own.startswith("qformer.vision_norm."):
        return own.replace("qformer.vision_norm", "vision_model.post_layernorm", 1)
    return own.removeprefix("qformer.")


def _sizes(retriever: QFormerRetriever, tower: VisionTower) -> Sizes:
    inner, seen = retriever.config.qformer, tower.model.config
    return Sizes(
        width=inner.width, layers=inner.layers, intermediate=inner.intermediate, queries=inner.queries,
        frequency=inner.cross_attention_frequency, vocabulary=retriever.qformer.vocabulary_size,
        positions=inner.positions, patch_width=tower.width, projected=retriever.config.embed_dim,
        tower_layers=seen.num_hidden_layers, tower_intermediate=seen.intermediate_size, patch=seen.patch_size,
        places=tower.num_tokens,
    )  # fmt: skip
