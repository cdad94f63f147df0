"""What is evaluated: a model of a config, its data, and the devices to do it on."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from tarflow_jax import experiment, loading
from tarflow_jax.data.sources import Dataset
from tarflow_jax.files import json_text
from tarflow_jax.parallel.mesh import make_mesh
from tarflow_jax.training.checkpoint import fingerprints


class Subject:
    """A config with what it names.

    Attributes:
      config: see `configs/base.py`.
      workdir: for what is written.
      mesh: the devices.
      model: the flow.
      params: its parameters; None until they are loaded.
    """

    def __init__(self, config, workdir: Path):
        self.config = config
        self.workdir = workdir
        self.mesh = make_mesh(**config.mesh)
        self.model = experiment.make_model(config)
        self.params: Any = None

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set of the config."""
        return experiment.open_data(self.config, self.model)

    def load(self, checkpoint: str | None) -> dict[str, str]:
        """Loads the parameters, of the workdir if no checkpoint is given; tells which they are."""
        source = experiment.what_to_load(self.workdir, checkpoint)
        self.model, self.params = loading.load_for(self.config, source, self.mesh)
        loading.warn_of_other_noise(self.config, source)
        prints = json_text(fingerprints(self.params))
        digest = hashlib.sha256(prints.encode()).hexdigest()
        return {'checkpoint': str(source), 'params_sha256': digest}
