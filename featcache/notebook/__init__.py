"""notebook: the notebook's nine experiments, and whether they come out alike."""
