"""From runs or history files to pictures. Nothing here imports torch or transformers.

`frames` makes tables, `figures` draws a table, `pictures` names the files, and `runs` and `files`
say which there are.
"""
