"""What the LM loses when an SAE stands in for its layer, and what the SAE's latents fire on."""
