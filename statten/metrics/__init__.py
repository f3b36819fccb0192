"""What is measured of a model: accuracy, firing rates, energy, latency."""
