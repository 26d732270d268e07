"""Flax modules. Linen, used only through ``init`` and ``apply``; no mutable collections."""
