"""`tunesmith verify`: whether what answers at an address, in a folder or in a file is the model that was tuned."""
