"""The embedded pair: two tiny reasoning models, the problems they were trained on, and how."""
