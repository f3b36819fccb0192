"""Datasets, their split, and the batches that each worker reads; all functions of (seed, epoch, step)."""

from statten.data.auto import lacks_data, resolved
from statten.data.dataset import CorruptSample, Samples, Source
from statten.data.factory import (
    check_data,
    check_split,
    make_loaders,
    make_test_loader,
    open_source,
    split_document,
    split_indices,
)
from statten.data.loaders import EvalLoader, Loaders, TrainLoader
from statten.registry import DATASETS, Dataset

__all__ = [
    "DATASETS",
    "CorruptSample",
    "Dataset",
    "EvalLoader",
    "Loaders",
    "Samples",
    "Source",
    "TrainLoader",
    "check_data",
    "check_split",
    "lacks_data",
    "make_loaders",
    "make_test_loader",
    "open_source",
    "resolved",
    "split_document",
    "split_indices",
]  # fmt: skip
