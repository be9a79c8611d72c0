"""Every command line that the package prints, and scenarios that provoke, extract and execute it."""
