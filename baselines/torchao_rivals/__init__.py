"""PAT and PARQ through torchao, whose optimizers do the work; imported when a method is used, never before."""
