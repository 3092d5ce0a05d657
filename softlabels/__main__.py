"""`python -m softlabels`: the command line, for `torchrun -m` and for interpreters without its script."""

from softlabels.cli import main

if __name__ == "__main__":
    main(prog_name="softlabels")
