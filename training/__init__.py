"""What train.py stands on: the digits, drawings of more of them, plots, several processes."""
