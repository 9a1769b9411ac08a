"""Export to ONNX and OpenVINO, quantise, and prove that each model still answers as the student does."""
