"""What the command line does with a trained model; its flags are in `mmssl/cli.py`."""
