"""SecureAttn: transformer formulas written once, run in the clear, under CKKS and on secret shares."""

__version__ = "0.1.0"
