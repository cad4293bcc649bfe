"""Encrypted inference over HTTP: a queue of jobs, processes that evaluate, and routes by which clients reach them."""
