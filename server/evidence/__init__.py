"""What a coordinator keeps of a run, so that nobody has to believe it later."""
