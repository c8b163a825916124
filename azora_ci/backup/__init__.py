"""The streaming backup pipeline and its proof."""
