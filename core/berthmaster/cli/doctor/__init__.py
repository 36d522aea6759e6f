"""`doctor`: is every part of Berthmaster installed, reachable, fresh and configured as it should be.

    gathering   asks the cluster everything at once, in bounded time        -> Facts
    a module per part, pure: facts in, findings out                         -> Finding
    reporting   findings as a table, with the commands that help

A fact that could not be read is `Unread` and becomes "not checked"; it is never taken for absent.
"""
