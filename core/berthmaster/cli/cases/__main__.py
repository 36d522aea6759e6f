"""Run decision cases from the command line."""

import sys

from berthmaster.cli.cases.judging import main

sys.exit(main())
