"""What is built on MNISTPredictor, each a command: python -m apps.canvas, and so on."""
