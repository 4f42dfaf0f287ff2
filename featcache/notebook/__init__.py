"""notebook: the notebook's nine experiments as recipes, and the comparison with its results."""
