"""Convert the configuration files of other trainers."""
