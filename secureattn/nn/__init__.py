"""Networks, written once over the Tensor interface."""
