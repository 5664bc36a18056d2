"""The pages of docs/results*: demo runs, rivals, and all methods side by side.

Not called "results": the script of that name would hide it.
"""
