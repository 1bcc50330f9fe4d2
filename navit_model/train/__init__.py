"""A run: from a configuration to checkpoints, a log and a report; steps, ranks, averages, schedules.

Takes: a `RunConfig` and a loader. Gives: a folder with everything that the run knows. What is learnt is one file of
`tasks/`. May not know: commands, or what is done with the weights afterwards.
"""
