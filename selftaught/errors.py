"""What a user can mend: one clear line, which the command line prints before it exits with 2."""


class UserError(Exception):
    """Bad input, said in one line together with what to do about it."""
