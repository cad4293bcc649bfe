"""Range-aware training and calibration: the only place with optimisers."""
