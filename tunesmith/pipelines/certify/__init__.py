"""`tunesmith models check`: the certificate of one network, which `tune` measures where it is missing."""
