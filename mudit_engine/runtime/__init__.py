"""What runs a trained model: denoisers, chunked decoding."""
