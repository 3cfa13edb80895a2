"""What judges: rows, bars and pictures made of the figures in metrics."""
