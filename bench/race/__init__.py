"""Our side of the race: jobs, our trainer, the judge, the page."""
