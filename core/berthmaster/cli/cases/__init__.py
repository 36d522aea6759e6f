"""Decision cases: worlds with the decision that is expected of them, run through the public path.

    vendors' objects -> inventory -> columns -> decision

`python -m berthmaster.cli.cases FILE|FOLDER ...` runs every case of every file, prints each failure
with expected and actual, and a closing line with the counts. A key that is not understood makes its
case fail, so that nothing is skipped silently.
"""
