"""Diffusion as small pure objects: a schedule, a parametrisation, a loss, a stepper, a sampler, a guidance."""
