"""From a tokenizer of images to one of video (MAGVIT-v2, appendix A.2).

A kernel of the image tokenizer becomes the last slice in time of the video tokenizer's kernel, and the other slices are
zero: at first every frame is treated by itself. An up-sampling in time starts as a repetition of frames, a
down-sampling in time takes the last frame of each group. So the video tokenizer reconstructs a clip that stands still
as the image tokenizer reconstructs its frame. The discriminator is not inflated but trained anew.
"""

import jax
import jax.numpy as jnp


def inflate(image_params, video_shapes):
    """Parameters for a video tokenizer of the same widths, blocks and spatial strides.

    Args:
        image_params: of the tokenizer with `kernel_t` 1.
        video_shapes: the video tokenizer's parameters, or anything with their shapes.

    Raises:
        ValueError: where a parameter is missing or fits no rule, naming it and both shapes.
    """
    before, now = jax.tree.structure(image_params), jax.tree.structure(video_shapes)
    if before != now:
        raise ValueError(f'the tokenizers differ in more than time: {before} there, {now} here')
    return jax.tree_util.tree_map_with_path(_inflate, image_params, video_shapes)


def _inflate(path, image, video):
    is_kernel = image.ndim == 5
    out = image
    if path[-2].key.endswith('_up') or path[-3].key.endswith('_up'):
        # Its channels are (time, height, width, C): every new frame starts the same.
        out = jnp.tile(out, (*[1] * (image.ndim - 1), video.shape[-1] // image.shape[-1]))
    if is_kernel and image.shape[0] == 1:
        out = jnp.pad(out, [(video.shape[0] - 1, 0), *[(0, 0)] * 4])
    if out.shape != video.shape:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        raise ValueError(f'{name} of shape {image.shape} does not inflate to {video.shape}')
    return out
