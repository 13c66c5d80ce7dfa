"""Hugging Face's layouts: their weights, our codes."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from chameleon_lab.checkpoints.huggingface import image_tokenizer_config, read_port_images
from chameleon_lab.corpora.scenes import sample_scene
from chameleon_lab.tokenizers.image import CHAMELEON_IMAGES, ImageTokenizer
from chameleon_lab.tokenizers.preparation import CentreCrop, HuggingFaceCrop, pixels_of

SMALL = {
    "embed_dim": 16,
    "num_embeddings": 64,
    "latent_channels": 16,
    "resolution": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
}


@pytest.fixture(scope="module")
def theirs():
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    torch.manual_seed(5)
    model = ChameleonVQVAE(ChameleonVQVAEConfig(**SMALL)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def their_codes(theirs, pixels_BCHW):
    with torch.no_grad():
        seen = theirs.encode(pixels_BCHW)
    assert seen.image_tokens is not None and seen.last_hidden_state is not None
    return seen.image_tokens.view(len(pixels_BCHW), *(side // 2 for side in pixels_BCHW.shape[-2:])), seen


def pictures(count: int, side: int) -> torch.Tensor:
    """Half noise, half scenes: pixels_BCHW."""
    rng = np.random.default_rng(0)
    scenes = [pixels_of(CentreCrop(side).picture(sample_scene(rng).picture())) for _ in range(count // 2)]
    return torch.cat([torch.rand(count - len(scenes), 3, side, side) * 2 - 1, torch.stack(scenes)])


@pytest.mark.parametrize("side", [32, 64])
def test_the_codes_are_exactly_theirs(theirs, folder, side):
    ours = read_port_images(folder)
    pixels_BCHW = pictures(8, side)
    wanted_BHW, seen = their_codes(theirs, pixels_BCHW)
    with torch.no_grad():
        codes_BHW = ours.encode_pixels(pixels_BCHW)
        assert torch.allclose(ours.encoder(pixels_BCHW), seen.last_hidden_state, atol=1e-4)
    assert torch.equal(codes_BHW, wanted_BHW)
    assert len(codes_BHW.unique()) > 8


def test_trap_12_their_pixels_end_at_0989_and_are_repeated_exactly(theirs, folder, picture):
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

    processor = ChameleonImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ours = read_port_images(folder)
    for width, height in ((32, 32), (61, 47), (33, 200), (300, 77)):
        shown = picture.resize((width, height))
        pixels_BCHW = torch.as_tensor(np.asarray(processor(shown)["pixel_values"]))
        policy = HuggingFaceCrop(32)
        assert torch.allclose(policy.pixels(policy.picture(shown))[None], pixels_BCHW.float(), atol=1e-6)
        assert torch.equal(torch.from_numpy(ours.encode(shown, policy)), their_codes(theirs, pixels_BCHW.float())[0][0])
        assert policy.pixels(policy.picture(shown)).max() <= 0.99


def test_without_a_decoder_it_says_so_when_one_is_needed(folder, picture):
    ours = read_port_images(folder)
    codes = ours.encode(picture)
    with pytest.raises(ValueError, match=r"holds no picture decoder .*vqgan\.ckpt"):
        ours.decode(codes)


@pytest.mark.parametrize("prefix", ["", "model.vqmodel."])
def test_a_decoder_that_is_there_is_never_dropped(folder, picture, prefix):
    config = image_tokenizer_config(json.loads((folder / "config.json").read_text()))
    whole = ImageTokenizer(config).eval()
    named = {}
    for name, tensor in whole.state_dict().items():
        resample = ".downsample." if name.startswith("encoder.") else ".upsample."
        named[prefix + name.replace(".resample.", resample)] = tensor
    named |= {"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2)} if prefix else {}
    safetensors.torch.save_file(named, folder / "model.safetensors")
    read = read_port_images(folder)
    assert read.decode(read.encode(picture)).tobytes() == whole.decode(whole.encode(picture)).tobytes()


def test_the_published_config_is_the_published_architecture():
    from transformers import ChameleonConfig, ChameleonVQVAEConfig

    assert image_tokenizer_config(ChameleonVQVAEConfig().to_dict()) == CHAMELEON_IMAGES
    assert image_tokenizer_config(ChameleonConfig().to_dict()) == CHAMELEON_IMAGES
    for kind in ("chameleon_vqgan", "chameleon_vqvae"):  # what is as published, transformers does not write
        assert image_tokenizer_config({"vq_config": {"model_type": kind}}) == CHAMELEON_IMAGES
        assert image_tokenizer_config({"model_type": kind, "vq_config": None}) == CHAMELEON_IMAGES


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"double_latent": True}, "double_latent = True"),
        ({"attn_resolutions": [16]}, r"attn_resolutions = \[16\]"),
        ({"attn_type": "none"}, "attn_type = 'none'"),
        ({"base_channels": None}, "does not describe a Chameleon image tokenizer"),
        ({"num_embeddings": 65}, r"contradicts .*quantize.embedding.weight \(64, 16\) instead of \(65, 16\)"),
        ({"num_res_blocks": 2}, "contradicts .*missing"),
    ],
)
def test_another_architecture_is_refused_by_name(folder, setting, why):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(ValueError, match=why):
        read_port_images(folder)


def test_broken_folders_say_what_is_wrong(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_port_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_port_images(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        read_port_images(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is no weights file of torch.*not opened"):
        read_port_images(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_port_images(folder)
