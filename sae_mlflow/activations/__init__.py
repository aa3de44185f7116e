"""Activations of a language model: planned, collected once for all sites, and read shuffled.

windows = token_windows(settings.text, load_tokenizer(settings.model))
plan = plan_activations(settings, windows)          # no LM yet; says what will be written
if plan.missing:
    lm = load_language_model(settings.model)
    for tokens_read in fill_activations(plan, lm):  # of plan.tokens_to_read
        ...
for acts in open_activations(plan):                 # one for each of plan.sites
    for batch in acts.batches(1024, generator):     # one epoch of Batch(x, y), `[1024, d]` each
        ...
"""
