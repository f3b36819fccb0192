"""The language of search spaces; it knows neither Ray, torch nor a study."""

from statten.space.loading import load_space, make_space, space_file
from statten.space.space import Point, Space

__all__ = ["Point", "Space", "load_space", "make_space", "space_file"]
