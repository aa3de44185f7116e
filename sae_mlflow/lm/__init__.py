"""The language model: found, checked, loaded, and heard at the places where SAEs stand."""
