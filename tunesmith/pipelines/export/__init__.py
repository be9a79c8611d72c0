"""`tunesmith export`: write a run for another program, run it there, and compare the answers with the original."""
