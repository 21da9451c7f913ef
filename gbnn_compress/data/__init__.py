"""What networks run on: data, preprocessing, architectures and their tensors' names."""
