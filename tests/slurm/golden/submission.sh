#!/bin/bash

# Parameters
#SBATCH --begin=now+5
#SBATCH --comment='a test'
#SBATCH --cpus-per-task=1
#SBATCH --error=RUN/launcher/slurm/%j_0_log.err
#SBATCH --job-name=geta-job
#SBATCH --mem=2048M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=RUN/launcher/slurm/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@30
#SBATCH --time=15

# setup
export FROM_SETUP=${HOME}
export PYTHONPATH=RUN/launcher/code:...
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export SRUN_CPUS_PER_TASK=1 SLURM_EXPORT_ENV=ALL
export CUDA_VISIBLE_DEVICES=

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUN/launcher/slurm/%j_%t_log.out --error RUN/launcher/slurm/%j_%t_log.err PYTHON -u -m submitit.core._submit RUN/launcher/slurm
