"""In PyTorch's place, for commands that do not need it: see tests/environment.py."""

raise ImportError("the commands that tests start are without torch")
