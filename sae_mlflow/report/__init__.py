"""One page about an experiment, to be passed on and printed.

`contents` gathers the facts of its runs out of the store, `pictures` says what is drawn, `page` and
`tables` make the HTML, and `build` puts them together. Nothing here imports torch.
"""
