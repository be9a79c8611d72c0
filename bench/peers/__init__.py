"""Other people's trainers in a race with ours. Nothing here imports tunesmith: these run in bench/.venv-peers."""
