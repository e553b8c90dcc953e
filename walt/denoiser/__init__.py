"""The second stage: the W.A.L.T transformer, which predicts the velocity of noisy latents."""
