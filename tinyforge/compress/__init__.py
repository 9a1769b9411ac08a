"""Export to ONNX and OpenVINO, quantise, prove that each model still answers as the student does, and pack the bundle.

``variants`` is the loop on one screen: make every model of the recipe, judge each against torch.
"""
