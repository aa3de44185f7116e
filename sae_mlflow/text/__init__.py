"""From documents to windows of tokens: `corpus` cuts what `documents` reads, `hub` streams."""
