"""The reference world and the model trained on it: the demo, the tests' real input and the benchmark."""
