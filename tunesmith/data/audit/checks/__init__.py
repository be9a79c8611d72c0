"""The checks of `tunesmith audit`, one module each."""
