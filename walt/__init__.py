"""W.A.L.T: latent video diffusion with a causal tokenizer and a window-attention transformer (arXiv:2312.06662).

One clip, from pixels to a sample and back:

    video_BTHWC --tokenizer.encode--> z_BTHWC --diffusion--> z_BTHWC --tokenizer.decode--> video_BTHWC
    1 + T frames                      1 + t latent frames                                  1 + T frames

Pixels are float32 in [0, 1]. *Latents* are what the encoder returns; *normalised latents* have mean 0 and standard
deviation 1 in every channel over the training clips, and are what the denoiser sees.

Shapes live in names. A suffix says what the axes of an array are:

    B batch rows   T frames   H height   W width   C channels     (pixels or latents)
    L tokens in a row   D model width   N heads   K head width   F hidden width of the MLP
    P tokens in a window   S conditioning tokens   R low rank
    E most clips of a packed row (walt.tokens)
    pt ph pw  patch or window extents

so `video_BTHWC`, `z_BTHWC`, `x_BLD`, `q_BLNK`, `mask_BLL`, `t_B`. In other names: `z` latents, `x` token activations,
`cond` conditioning, `t` diffusion time in [0, 1] (0 is clean, 1 is noise), `frames` video time.
"""
