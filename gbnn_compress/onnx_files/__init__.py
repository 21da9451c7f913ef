"""ONNX files made of artifacts."""
