"""A trained model in use: what it reads, what it says, and how sure it is."""

from statten.prediction.model import TrainedModel, load_model
from statten.prediction.results import Prediction, Predictions

__all__ = ["Prediction", "Predictions", "TrainedModel", "load_model"]
