"""Writes tests/interop/goldens: what the PyTorch networks of diffusers and transformers make of `foreign` weights.

python -m tests.interop.make_goldens          with the extra `interop` installed; on a CPU, in a minute

    NAME.json   names and shapes of the arrays of a state dict
    NAME.npz    inputs and outputs of the network with `foreign.weights` of those
"""

import json

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DiTTransformer2DModel

from tests.interop import foreign

AUTOENCODER = dict(
    block_out_channels=(32, 64),
    down_block_types=('DownEncoderBlock2D',) * 2,
    up_block_types=('UpDecoderBlock2D',) * 2,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
)
STABLE_DIFFUSION = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=('DownEncoderBlock2D',) * 4,
    up_block_types=('UpDecoderBlock2D',) * 4,
    layers_per_block=2,
    latent_channels=4,
)
# As the published code has it; diffusers' default is 1e-5 in the second norm of a block.
DIT = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=10,
    norm_eps=1e-6,
)
XL_2 = dict(sample_size=32, out_channels=8)


def shapes_of(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def with_weights(module: torch.nn.Module, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return module.eval()


def autoencoder(arrays: dict[str, np.ndarray], video_BCHW: np.ndarray, z_BCHW: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and log-variance of `video_BCHW` in [-1, 1], and pixels of `z_BCHW`."""
    network = with_weights(AutoencoderKL(**AUTOENCODER), arrays)
    with torch.no_grad():
        posterior = network.encode(torch.from_numpy(video_BCHW)).latent_dist
        decoded = network.decode(torch.from_numpy(z_BCHW)).sample
    return {'mean': posterior.mean.numpy(), 'logvar': posterior.logvar.numpy(), 'decoded': decoded.numpy()}


def dit(arrays: dict[str, np.ndarray], z_BCHW, index_B, label_B) -> np.ndarray:
    """With the rates of the published code: 10000^(-i / 128) for i = 0 .. 127, where diffusers' DiT divides by 127."""
    network = with_weights(DiTTransformer2DModel(**DIT), arrays)
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    with torch.no_grad():
        inputs = (torch.from_numpy(array) for array in (z_BCHW, index_B, label_B))
        return network(*inputs).sample.numpy()


def t5_encoder(kind: str) -> transformers.PreTrainedModel:
    """Of a kind of `foreign.T5_CONFIGS`."""
    config = transformers.AutoConfig.for_model(**foreign.T5_CONFIGS[kind])
    encoder = transformers.UMT5EncoderModel if kind == 'umt5' else transformers.T5EncoderModel
    return encoder(config)


def t5(network: transformers.PreTrainedModel, prompt: str) -> np.ndarray:
    """Last hidden states of a prompt's words and </s>: (words + 1, width)."""
    ids = [foreign.T5_WORDS.index(word) for word in prompt.split()] + [1]
    with torch.no_grad():
        return network(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()


def main() -> None:
    torch.manual_seed(0)
    foreign.GOLDENS.mkdir(exist_ok=True)
    rng = np.random.RandomState(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    with torch.device('meta'):
        networks = {
            'autoencoder_kl': AutoencoderKL(**AUTOENCODER),
            'autoencoder_kl_sd': AutoencoderKL(**STABLE_DIFFUSION),
            'dit': DiTTransformer2DModel(**DIT),
            'dit_xl_2': DiTTransformer2DModel(**XL_2),
        } | {kind: t5_encoder(kind) for kind in foreign.T5_CONFIGS}
    for name, network in networks.items():
        lines = [f'{json.dumps(key)}: {shape}' for key, shape in shapes_of(network).items()]
        (foreign.GOLDENS / f'{name}.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')

    inputs = {'video': np.tanh(normal(2, 3, 16, 24)), 'z': normal(2, 4, 8, 12)}
    made = autoencoder(foreign.weights(foreign.shapes('autoencoder_kl')), inputs['video'], inputs['z'])
    np.savez_compressed(foreign.GOLDENS / 'autoencoder_kl.npz', **inputs, **made)

    inputs = {'z': normal(3, 4, 8, 8), 'index': np.array([0, 500, 999]), 'label': np.array([3, 10, 7])}
    made = dit(foreign.dit_weights(foreign.shapes('dit')), inputs['z'], inputs['index'], inputs['label'])
    positions = DiTTransformer2DModel(**DIT).pos_embed.pos_embed.numpy()
    np.savez_compressed(foreign.GOLDENS / 'dit.npz', **inputs, prediction=made, positions=positions)

    for kind in foreign.T5_CONFIGS:
        network = with_weights(t5_encoder(kind), foreign.t5_weights(kind))
        states = {f'states{number}': t5(network, prompt) for number, prompt in enumerate(foreign.T5_PROMPTS)}
        np.savez_compressed(foreign.GOLDENS / f'{kind}.npz', **states)


if __name__ == '__main__':
    main()
