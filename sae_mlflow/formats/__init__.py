"""SAEs at rest: `sae_files` writes and reads them, each format in a module of its own."""
