"""Engines: the only places that import tenseal or crypten."""
