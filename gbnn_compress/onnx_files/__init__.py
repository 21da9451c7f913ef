"""Export of artifacts to ONNX."""
