"""`make gpu-proof`, or `python -m tools.gpu_proof`: all that only a GPU can show of ste_ops, by one command.

__main__.py chooses the stages and runs them one after the other, stages.py says what they are, processes.py runs a
command with a time limit, machine.py says where it ran, record.py keeps the results."""
