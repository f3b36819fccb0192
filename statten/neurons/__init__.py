"""Spiking neurons over whole sequences: one C++ source for CPUs and GPUs, and plain PyTorch as the oracle of both."""

from statten.neurons.backends import NEURON_BACKENDS, check_backend, select_backend
from statten.neurons.dynamics import Dynamics, Norm
from statten.neurons.lif import LIF, PLIF, follow_statistics
from statten.neurons.packing import packed_spikes

__all__ = [
    "LIF", "NEURON_BACKENDS", "PLIF", "Dynamics", "Norm", "check_backend", "follow_statistics", "packed_spikes",
    "select_backend",
]  # fmt: skip
