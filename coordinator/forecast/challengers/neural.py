"""LSTM and PatchTST (a Transformer) as challengers, through neuralforecast (extra `neural`): tiny, on the CPU, one for all series.

Each turn trains anew on the series asked for, with the quantile loss at LEVELS, then forecasts them hour by hour. Series are divided by
their own usual level before, so that a fleet of mixed units is one data set.
Sources: Hochreiter and Schmidhuber (1997); Nie et al., "A time series is worth 64 words", ICLR 2023.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from coordinator.forecast.challengers.port import Answer, Question, bounded
from coordinator.forecast.challengers.rows import askable, demand, missing
from coordinator.model import F64, LEVELS
from shared.units import BUCKET_S, HORIZON_STEPS

HISTORY: Final = 2016
CONTEXT: Final = 72  # buckets a network sees: six hours
LEAST: Final = CONTEXT + 2 * HORIZON_STEPS
WILD: Final = 1e9  # usual levels: beyond it an answer is no answer
TRAINER: Final[dict[str, Any]] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SIZES: Final[dict[str, dict[str, Any]]] = {
    "LSTM": {
        "encoder_n_layers": 1,
        "encoder_hidden_size": 32,
        "decoder_hidden_size": 32,
        "decoder_layers": 1,
        "learning_rate": 3e-3,
        "scaler_type": "standard",
    },
    "PatchTST": {
        "encoder_layers": 2,
        "n_heads": 4,
        "hidden_size": 32,
        "linear_hidden_size": 64,
        "patch_len": 12,
        "stride": 6,
        "learning_rate": 2e-3,
        "scaler_type": "standard",
        "revin": False,
    },
}


@dataclass(frozen=True, kw_only=True)
class NeuralModel:
    """`model`: a class of neuralforecast.models in SIZES. `training_steps`: batches of the training."""

    name: str
    model: str
    training_steps: int = 200
    alone: bool = False

    def available(self) -> str | None:
        """Why it cannot run here."""
        return missing("neural", "torch", "neuralforecast")

    def forecast(self, question: Question, seed: int = 0) -> Answer:
        """Mean (the median) and quantiles at LEVELS, these for the first hour only; NaN for series shorter than it can see."""
        demand(self.name, self.available())
        shape = (len(question.series), question.steps)
        quantiles = np.full((*shape, len(LEVELS)), np.nan, dtype=np.float32)
        mean = np.full(shape, np.nan, dtype=np.float32)
        rows, filled = askable(question)
        if not len(rows) or filled.shape[1] < LEAST:
            return bounded(mean, quantiles)
        filled = filled[:, -HISTORY:]
        level = np.maximum(np.abs(filled).mean(axis=1, keepdims=True), 1e-9)
        said = self._run(filled / level, question.issued_s, -(-question.steps // HORIZON_STEPS), seed)[:, : question.steps]
        said = np.where(np.abs(said) < WILD, said, np.nan) * level[..., None]
        mean[rows] = said[..., LEVELS.index(0.5)]
        quantiles[rows, :HORIZON_STEPS] = said[:, :HORIZON_STEPS]
        return bounded(mean, quantiles)

    def _run(self, series: F64, issued_s: int, hours: int, seed: int) -> F64:
        """Train on series [m, b] and forecast them hour by hour, each fed with the medians before it: [m, 12 x hours, q]."""
        m = len(series)
        parts = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning advises on workers and loggers that a turn on one core does not want
            network = self._fresh(seed)
            frame = _frame(series, issued_s)
            network.fit(frame)
            for _ in range(hours):
                frame = _frame(series[:, -2 * CONTEXT :], issued_s)
                said = network.predict(df=frame).sort_values(["unique_id", "ds"])
                columns = [column for column in said.columns if column not in {"unique_id", "ds"}]
                if len(columns) != len(LEVELS):
                    raise RuntimeError(f"{self.model} answered {columns}: one column for each of {LEVELS} expected")
                hour: F64 = np.sort(said[columns].to_numpy(dtype=np.float64).reshape(m, HORIZON_STEPS, len(LEVELS)), axis=-1)
                parts.append(hour)
                series = np.concatenate([series, np.clip(hour[..., LEVELS.index(0.5)], -WILD, WILD)], axis=1)
                issued_s += HORIZON_STEPS * BUCKET_S
        return np.concatenate(parts, axis=1)

    def _fresh(self, seed: int) -> Any:
        """An untrained network of neuralforecast."""
        forecaster: Any = importlib.import_module("neuralforecast").NeuralForecast
        kind: Any = getattr(importlib.import_module("neuralforecast.models"), self.model)
        kind = _reading_on(kind) if self.model == "LSTM" else kind
        loss: Any = importlib.import_module("neuralforecast.losses.pytorch").MQLoss(quantiles=list(LEVELS))
        importlib.import_module("torch").set_num_threads(1)
        for chatty in ("pytorch_lightning", "lightning_fabric"):  # they tell every seed and every missing GPU, on a line each
            importlib.import_module("logging").getLogger(chatty).setLevel("WARNING")
        model = kind(
            h=HORIZON_STEPS,
            input_size=CONTEXT,
            loss=loss,
            max_steps=self.training_steps,
            batch_size=32,
            windows_batch_size=256,
            random_seed=seed + 1,
            val_check_steps=self.training_steps + 1,
            **SIZES[self.model],
            **TRAINER,
        )
        return forecaster(models=[model], freq="5min")


def _reading_on(lstm: Any) -> Any:
    """neuralforecast's LSTM decodes step k from its state 12 - k buckets before the newest one, blind to what came since.

    Reading the newest value on for an hour makes those the states after all that is known.
    """

    def forward(self: Any, windows_batch: dict[str, Any]) -> Any:
        seen = windows_batch["insample_y"]
        on = seen[:, -1:].expand(-1, HORIZON_STEPS, -1)
        joined = importlib.import_module("torch").cat([seen, on], dim=1)
        return lstm.forward(self, {**windows_batch, "insample_y": joined})

    return type(lstm.__name__, (lstm,), {"forward": forward})


def _frame(series: F64, issued_s: int) -> Any:
    """The long table that neuralforecast takes; series [m, b] that end at `issued_s`."""
    pandas: Any = importlib.import_module("pandas")
    m, b = series.shape
    stamps = np.arange(issued_s - b * BUCKET_S, issued_s, BUCKET_S).astype("datetime64[s]").astype("datetime64[ns]")
    return pandas.DataFrame({"unique_id": np.repeat(np.arange(m), b), "ds": np.tile(stamps, m), "y": series.ravel()})


NEURAL: Final = (NeuralModel(name="lstm", model="LSTM"), NeuralModel(name="patchtst", model="PatchTST"))
