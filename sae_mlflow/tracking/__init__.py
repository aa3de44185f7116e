"""The tracking store. Nothing outside this folder imports `mlflow`."""
