"""kill -9 and full disks at drawn moments: what happens to real trainings and to their copies in MLflow."""
