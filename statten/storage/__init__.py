"""Runs on disk and in object stores: the folder, its checkpoints, its one writer."""
