"""What every room stands on: errors, clock, processes, job log, settings, configuration, schemas, names of jobs. No outside system."""
