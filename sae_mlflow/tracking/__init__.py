"""The tracking store. Nothing outside this folder imports `mlflow`.

`store` finds, opens and writes runs over what `reader` reads, `open_run` is one that is written to,
`models` are MLflow's registered ones. A training's store is `journalled`: it may go away meanwhile.
"""
