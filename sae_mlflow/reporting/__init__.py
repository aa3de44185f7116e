"""What a person sees of a training: its progress, the table of layers, where the time went."""
