"""What runs apart, on machines of their own: the parties of a run on secret shares, and the dealer."""
