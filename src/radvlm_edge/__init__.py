"""RadVLM on the device."""
