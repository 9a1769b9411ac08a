"""TINT: textual inversion, null-text inversion and norm-guided generation over a latent diffusion backbone."""
