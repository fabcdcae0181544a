"""What reading a digit takes: weights, any image to gray values, ink, MNIST's geometry."""
