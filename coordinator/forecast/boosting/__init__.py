"""One global LightGBM model over all VMs and resources: trained in seconds, gated, walked without LightGBM.

`train` (training.py) turns a history into bytes, `gate` (gate.py) decides whether they replace the model in use, `QuantileBooster`
(model.py) forecasts with them through flattened trees (trees.py).
"""

from coordinator.forecast.boosting.gate import Verdict, challenge, gate
from coordinator.forecast.boosting.model import PEAK_QUANTILES, QUANTILES, QuantileBooster, exercise
from coordinator.forecast.boosting.training import Settings, train

__all__ = ["PEAK_QUANTILES", "QUANTILES", "QuantileBooster", "Settings", "Verdict", "challenge", "exercise", "gate", "train"]
