"""Data, architectures and preprocessing by fixed names."""

from gbnn_compress.data.architectures import build_network, default_preprocessing, load_weights
from gbnn_compress.data.datasets import Dataset, load_data
from gbnn_compress.data.preprocessing import Preprocessing, parse_numbers

__all__ = [
    "Dataset",
    "Preprocessing",
    "build_network",
    "default_preprocessing",
    "load_data",
    "load_weights",
    "parse_numbers",
]
