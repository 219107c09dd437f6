"""SigLIP 2 NaFlex (`hf_naflex`) as a model of search, against transformers' own processor and forward pass."""

import numpy as np
import published
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

import cirray
from cirray.transforms import grid_of, stacked, unpacked

TEXTS = ["paint the red circle blue", "remove it", "move the small square", "to top left"]
SIZES = [(61, 40), (40, 90), (33, 33), (200, 15)]
"""Wide, tall, square, and longer than it may be wide."""


def photographs():
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in SIZES]
    return [Image.fromarray(pixels).resize(size) for pixels, size in zip(small, SIZES, strict=True)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("published") / "naflex")
    model = published.naflex(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(photographs(), return_tensors="pt")
    words = AutoTokenizer.from_pretrained(folder)(
        TEXTS, return_tensors="pt", padding="max_length", max_length=published.LENGTH
    )
    with torch.inference_mode():
        image, text = model.get_image_features(**pixels), model.get_text_features(input_ids=words["input_ids"])
    return cirray.load(folder), pixels, image.pooler_output, text.pooler_output


def ours(model):
    with torch.inference_mode():
        return model.vision.inputs(torch.from_numpy(stacked([model.transform(image) for image in photographs()])))


def test_a_picture_becomes_the_patches_that_the_library_s_processor_makes_of_it(both):
    model, pixels, *_ = both
    made = ours(model)
    assert made["spatial_shapes"].tolist() == pixels["spatial_shapes"].tolist()
    assert len({tuple(grid) for grid in made["spatial_shapes"].tolist()}) == len(SIZES)
    assert torch.equal(made["pixel_attention_mask"], pixels["pixel_attention_mask"])
    step = float((1 / model.vision.std_C).max())  # one level of 256
    assert float((made["pixel_values"] - pixels["pixel_values"]).abs().max()) < 1.5 * step
    assert float((made["pixel_values"] - pixels["pixel_values"].flip(0)).abs().mean()) > 10 * step


def test_vectors_are_those_of_the_library_s_own_forward(both):
    model, pixels, image_BD, text_BD = both
    with torch.inference_mode():
        exact_BD = model.vision.model(**pixels).pooler_output
    assert torch.allclose(exact_BD, image_BD, atol=1e-5)
    found = torch.from_numpy(model.texts(TEXTS))
    assert torch.allclose(found, functional.normalize(text_BD, dim=-1), atol=2e-5)
    images = torch.from_numpy(model.images(photographs()))[:, 0]
    cosines = [
        (images * functional.normalize(other, dim=-1)).sum(-1).min() for other in (image_BD, image_BD.roll(1, 0))
    ]
    assert float(cosines[0]) > 0.999 > 0.99 > float(cosines[1])


def test_the_picture_s_shape_reaches_the_model(both):
    model, *_ = both
    picture = photographs()[0]
    vectors = model.images([picture, picture.resize((40, 40))])[:, 0]
    assert float(vectors[0] @ vectors[1]) < 0.999


@pytest.mark.parametrize("most", [20, 256, 500])
def test_grids_are_the_library_s_for_pictures_of_any_size(most):
    rng = np.random.default_rng(most)
    for _ in range(200):
        width = int(rng.integers(8, 3000))
        height = int(np.clip(width * 20 ** rng.uniform(-1, 1), 8, 6000))
        theirs = get_image_size_for_max_num_patches(height, width, 16, most)
        assert tuple(16 * side for side in grid_of(height, width, most)) == theirs, (height, width)


def test_a_packed_picture_comes_back_as_it_was_whatever_stands_beside_it(both):
    model, *_ = both
    rows = [model.transform(image) for image in photographs()]
    again = unpacked(stacked(rows))
    assert [picture.shape for picture in again] == [picture.shape for row in rows for picture in unpacked(row[None])]
    assert all(np.array_equal(row[8:], picture.ravel()) for row, picture in zip(rows, again, strict=True))


def test_a_folder_is_indexed_searched_and_its_checkpoint_is_the_same_model(both, tmp_path):
    model, *_ = both
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(photographs()):
        picture.save(tmp_path / "photos" / f"p{number}.png")
    gallery = model.index(tmp_path / "photos", out=str(tmp_path / "index"), root=str(tmp_path / "root"))
    assert [row.id for row in gallery.search(photographs()[1])][0] == "p1"
    assert len(gallery.search("p0", "remove it")) == 3
    assert gallery.engine.vision.digest == model.vision.digest and gallery.engine.encoder.digest == model.digest
