"""The first stage: a causal 3-D convolutional autoencoder, video <-> latents (MAGVIT-v2 without its quantiser)."""
