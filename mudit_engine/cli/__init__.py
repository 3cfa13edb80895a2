"""The command line, one file a command: mudit_engine/cli/<name>.py defines `command` and is listed
by `mudit --help`.

Heavy imports (torch, numpy, pydantic, the models) live inside the command's body. main.py runs a
command and maps errors to exit codes; _console.py is how commands speak: one JSON document, tables,
progress.
"""
