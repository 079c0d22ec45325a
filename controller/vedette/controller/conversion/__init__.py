"""From fitted models to ONNX files that give the same numbers, and the proof that they do.

Loads onnx (and onnxruntime to prove parity): import it in training children only, never in the server.
"""
