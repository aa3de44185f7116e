"""Pictures that hold runs against each other: models, architectures, seeds, layers."""
