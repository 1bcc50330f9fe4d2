"""What a run can learn, one file each; `task.py` beside this folder says what a task is and lists them."""
