"""What a training's history says about itself: diverged, stalled, dead, dense, ...

`check` is the one function; it knows neither torch nor the store. `stored` reads what it needs of a
run in the store.
"""
