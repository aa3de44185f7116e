"""The runs of one training: the parent's, and each layer's from its first epoch to its pictures."""
