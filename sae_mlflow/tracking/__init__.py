"""The tracking store. Nothing outside this folder imports `mlflow`.

`store` finds and opens runs, `open_run` is one that is written to, `registry` registers its SAE.
"""
