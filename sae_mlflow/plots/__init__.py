"""From runs or history files to pictures. Nothing here imports torch or transformers.

`frames` makes tables, `figures` draws a table in a `style`, `pictures` names the files, and `runs`
and `files` say which there are. `Store` is imported for its type alone: processes that draw load
these modules, and would load MLflow with it.
"""
