"""Latency, memory, fidelity and task quality, measured from outside."""
