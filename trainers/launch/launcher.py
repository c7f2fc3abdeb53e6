"""`accelerate launch` in a process that becomes the rank itself when there is only one.

As a command, `accelerate launch` imports torch to set some variables and then starts a second interpreter that imports
torch again: this costs three seconds of every start, and 300 MB for as long as the run lives. Here the same launcher
(its arguments, its configuration file, its environment) runs in process, and only the last step differs: a single
process runs the module itself.
"""

import argparse
import os
import runpy
import sys

from trainers.launch import imports

with imports.without_garbage_collection():
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env


def _run_in_this_process(args: argparse.Namespace) -> None:
    """Replace accelerate's `simple_launcher`, which would start a child with this environment and wait for it."""
    _, environment = prepare_simple_launcher_cmd_env(args)
    os.environ.update(environment)
    sys.argv = [args.training_script, *args.training_script_args]
    runpy.run_module(args.training_script, run_name="__main__", alter_sys=True)


def main() -> None:
    """Run `python -m trainers.launch.launcher <arguments of accelerate launch>`."""
    launch.simple_launcher = _run_in_this_process
    launch.launch_command(launch.launch_command_parser().parse_args())


if __name__ == "__main__":
    main()
