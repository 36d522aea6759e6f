"""Fit a model of a server's power with scikit-learn and lay it out for MLServer; run by the peers' own Python.

    python training.py FOLDER < {"inputs": [[cpu, inlet, deltaP], ...], "watts": [...], "asked": [[...], ...]}

Prints what the model says of `asked`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import joblib
from sklearn.ensemble import RandomForestRegressor


def main() -> None:
    """Fit, store, predict."""
    given = json.load(sys.stdin)
    model = RandomForestRegressor(n_estimators=20, random_state=1)
    model.fit(given["inputs"], given["watts"])
    joblib.dump(model, Path(sys.argv[1]) / "model.joblib")
    print(json.dumps(model.predict(given["asked"]).tolist()))


if __name__ == "__main__":
    main()
