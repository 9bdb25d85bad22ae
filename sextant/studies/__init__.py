"""Questions: scenarios, sweeps, reports and the command line."""
