"""The laboratory: collecting, training, runs on disk, presets, numerical checks, plots, and the command line."""
