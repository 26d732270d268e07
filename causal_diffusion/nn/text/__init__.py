"""Captions as condition tokens: frozen text encoders and a small trainable one."""
