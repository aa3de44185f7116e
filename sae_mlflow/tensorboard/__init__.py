"""What stands in the store, as TensorBoard reads it: event files of its own format."""
