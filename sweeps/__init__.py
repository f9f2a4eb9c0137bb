"""Many runs: comparisons, studies, tables and figures; and the command line that joins everything."""
