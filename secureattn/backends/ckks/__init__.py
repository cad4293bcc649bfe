"""CKKS homomorphic encryption over Microsoft SEAL."""
