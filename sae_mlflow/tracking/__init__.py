"""The tracking store. Nothing outside this folder imports `mlflow`.

`store` finds, opens and writes runs over what `reader` reads, `open_run` is one that is written to,
`registry` registers its SAE. A training's store is `journalled`: it may go away meanwhile.
"""
