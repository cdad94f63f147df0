"""What is evaluated: a model of a config, its data, and the devices to do it on."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from tarflow_jax import experiment, loading
from tarflow_jax.data.sources import Dataset
from tarflow_jax.files import json_text
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.stopping import Stop
from tarflow_jax.training.checkpoint import fingerprints


class Subject:
    """A config with what it names.

    Attributes:
      config: see `configs/base.py`.
      workdir: for what is written.
      stop: hears the signals.
      mesh: the devices.
      model: the flow.
      params: its parameters; None until they are loaded.
      loaded: which parameters they are: checkpoint, step and params_sha256; empty until then.
    """

    def __init__(self, config, workdir: Path, stop: Stop):
        self.config = config
        self.workdir = workdir
        self.stop = stop
        self.mesh = make_mesh(**config.mesh)
        self.model = experiment.make_model(config)
        self.params: Any = None
        self.loaded: dict[str, Any] = {}

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set of the config."""
        return experiment.open_data(self.config, self.model)

    def load(self, checkpoint: str | None) -> None:
        """Loads the parameters, of the workdir if no checkpoint is given."""
        source = experiment.what_to_load(self.workdir, checkpoint)
        self.model, self.params, step = loading.load_for(self.config, source, self.mesh)
        loading.warn_of_other_noise(self.config, source)
        prints = json_text(fingerprints(self.params))
        digest = hashlib.sha256(prints.encode()).hexdigest()
        self.loaded = {'checkpoint': str(source), 'step': step, 'params_sha256': digest}
