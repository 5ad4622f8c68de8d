"""Averages of the weights that a job visits, and the choice of what is delivered."""
